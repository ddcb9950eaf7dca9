"""Whether the other end of a link still lives, and how far away it is."""

from typing import Protocol

import attrs
import trio

from meshnode.wire.control_messages import Ping, Pong

__all__ = ["Compared", "Heartbeat"]

_WEIGHT = 1 / 8  # of a new sample in the mean


class Compared(Protocol):
    """What both ends should have the same of."""

    def digest(self) -> int:
        """Return that of ours."""
        ...

    def compare(self, digest: int | None) -> None:
        """Take that of theirs; None from a version that has none."""
        ...


@attrs.define(eq=False)
class Heartbeat:
    """Counts the pings in a row that saw no sign of life. Any byte that comes is one; so is progress of a long write."""

    compared: Compared | None = attrs.field(
        default=None, init=False
    )  # None: nothing is compared, and nothing sent for it
    round_trip: float | None = attrs.field(default=None, init=False)  # seconds, moving mean
    missed: int = attrs.field(default=0, init=False)
    _number: int = attrs.field(default=0, init=False)
    _sent_at: float | None = attrs.field(default=None, init=False)  # None: its round trip would tell of our own queue
    _heard: bool = attrs.field(default=True, init=False)

    def ping(self, *, measure: bool) -> Ping:
        """Return the next ping, having counted the last one. `measure` says that it goes out at once."""
        self.missed = 0 if self._heard else self.missed + 1
        self._heard = False
        self._number += 1
        self._sent_at = trio.current_time() if measure else None
        return Ping(self._number, self._digest())

    def pong(self, ping: Ping) -> Pong:
        """Return the answer to a ping."""
        self._compare(ping.digest)
        return Pong(ping.number, self._digest())

    def may_rest(self) -> bool:
        """Say whether a ping can be left out, because there was a sign of life since the last one, or since this was asked."""
        heard, self._heard = self._heard, False
        return heard

    def heard(self) -> None:
        """Note a sign of life."""
        self._heard = True
        self.missed = 0

    def answered(self, pong: Pong) -> None:
        """Take the answer to a ping; one that is not to the last ping tells nothing."""
        self._compare(pong.digest)
        if pong.number != self._number or self._sent_at is None:
            return
        sample, self._sent_at = trio.current_time() - self._sent_at, None
        mean = self.round_trip
        self.round_trip = sample if mean is None else mean + _WEIGHT * (sample - mean)

    def _digest(self) -> int | None:
        return None if self.compared is None else self.compared.digest()

    def _compare(self, digest: int | None) -> None:
        if self.compared is not None:
            self.compared.compare(digest)
