"""What acquisitions are under way and how the last ones ended, as one value that readers can watch."""

import attrs
import trio

from meshnode.files.acquisitions import AcquisitionProgress, Phase
from meshnode.flow.latest import Latest

__all__ = ["ProgressBoard"]

_SHOWN = 50  # acquisitions; the ended ones of longest ago are dropped first
_EVERY = 0.1  # seconds between two reports of bytes

_ENDED = ("done", "failed")


@attrs.define(eq=False)
class ProgressBoard:
    """The writer of one `Latest`. Not thread-safe: workers report through `trio.from_thread`."""

    _latest: Latest[tuple[AcquisitionProgress, ...]]
    _rows: dict[str, AcquisitionProgress] = attrs.field(factory=dict, init=False)
    _published: float = attrs.field(default=float("-inf"), init=False)

    def report(self, reference: str, phase: Phase, done_bytes: int = 0, total_bytes: int = 0) -> None:
        """Say how far an acquisition is; of many reports of bytes only ten a second are passed on."""
        before = self._rows.get(reference)
        self._rows[reference] = AcquisitionProgress(reference, phase, done_bytes, total_bytes)
        is_news = before is None or before.phase != phase or phase in _ENDED
        if is_news or trio.current_time() - self._published >= _EVERY:
            self._publish()

    def fail(self, reference: str, error: str) -> None:
        """Say that an acquisition has failed, and why."""
        self._rows[reference] = AcquisitionProgress(reference, "failed", error=error)
        self._publish()

    def forget(self, reference: str) -> None:
        """Show this acquisition no longer."""
        if self._rows.pop(reference, None) is not None:
            self._publish()

    def _publish(self) -> None:
        ended = [reference for reference, row in self._rows.items() if row.phase in _ENDED]
        for reference in ended[: max(0, len(self._rows) - _SHOWN)]:
            del self._rows[reference]
        self._published = trio.current_time()
        self._latest.set(tuple(self._rows.values()))
