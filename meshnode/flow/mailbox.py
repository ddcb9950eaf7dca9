"""A bounded request channel that outlives its server.

The composition root builds a mailbox and hands it to senders; each incarnation of the subsystem that serves it calls
`serve()`. Letters still in the buffer when an incarnation ends are served by the next one; letters in hand are refused
with `Unavailable` at once, so that nobody waits for an answer that cannot come, and no letter is ever handled twice.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, Self, TypeVar

import attrs
import trio

from meshnode.errors import MeshnodeError, Unavailable

__all__ = ["Letter", "Letters", "Mailbox"]

Q = TypeVar("Q")
R = TypeVar("R")


@attrs.define(eq=False)
class Letter(Generic[Q, R]):
    """One question. Whoever takes it answers or refuses exactly once; doing it again, or too late, does nothing."""

    question: Q
    abandoned: trio.Event = attrs.field(factory=trio.Event)
    _settled: trio.Event = attrs.field(factory=trio.Event)
    _answer: R | None = attrs.field(default=None, init=False)
    _error: MeshnodeError | None = attrs.field(default=None, init=False)

    def answer(self, value: R) -> None:
        """Give the asker its answer."""
        if not self._settled.is_set():
            self._answer = value
            self._settled.set()

    def refuse(self, error: MeshnodeError) -> None:
        """Make the asker's `ask` raise `error`."""
        if not self._settled.is_set():
            self._error = error
            self._settled.set()

    @property
    def is_owed(self) -> bool:
        """Whether somebody still waits for its answer."""
        return not (self._settled.is_set() or self.abandoned.is_set())

    async def outcome(self) -> R:
        """Wait for the answer. Cancellation marks the letter abandoned; its server may notice and stop."""
        try:
            await self._settled.wait()
        except trio.Cancelled:
            self.abandoned.set()
            raise
        if self._error is not None:
            raise self._error
        return self._answer  # type: ignore[return-value]  # settled without an error means answered


@attrs.define(eq=False)
class Mailbox(Generic[Q, R]):
    """Built once, served by one incarnation at a time."""

    name: str
    size: int = 0  # letters that may wait unread; 0 is a rendezvous
    _send: trio.MemorySendChannel[Letter[Q, R]] = attrs.field(init=False)
    _receive: trio.MemoryReceiveChannel[Letter[Q, R]] = attrs.field(init=False)
    refused: int = attrs.field(default=0, init=False)  # letters left without waiting for which there was no room
    _unhandled: int = attrs.field(default=0, init=False)  # letters between their sender and the end of their handling
    _at_once: Callable[[Q], bool] | None = attrs.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[Letter[Q, R]](self.size)

    async def ask(self, question: Q) -> R:
        """Send and wait for the answer.

        Raises what the server refuses with, or Unavailable when it ends with the letter in hand. Cancellation withdraws the
        wait: an unread letter is handed over as abandoned, one in hand has its `abandoned` event set.
        """
        letter: Letter[Q, R] = Letter(question)
        await self._leave(letter)
        return await letter.outcome()

    async def tell(self, message: Q) -> None:
        """Wait for room and leave the message; nobody answers. Cancellation before there is room leaves nothing."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if not self._handed_over(message):
            await self._leave(_note(message))

    def tell_nowait(self, message: Q) -> None:
        """Leave the message if there is room. Raises trio.WouldBlock."""
        if not self._handed_over(message):
            try:
                self._send.send_nowait(_note(message))
            except trio.WouldBlock:
                self.refused += 1
                raise
            self._unhandled += 1

    async def _leave(self, letter: Letter[Q, R]) -> None:
        self._unhandled += 1
        try:
            await self._send.send(letter)
        except BaseException:
            self._unhandled -= 1
            raise

    def _handed_over(self, message: Q) -> bool:
        if self._at_once is None or self._unhandled:
            return False
        try:
            return self._at_once(message)
        except Exception:  # noqa: BLE001  # it goes the long way, and fails again where that is a crash of its server
            return False

    def waiting(self) -> int:
        """Return how many letters lie unread."""
        return self._receive.statistics().current_buffer_used

    @contextmanager
    def serve(self, at_once: Callable[[Q], bool] | None = None) -> Iterator["Letters[Q, R]"]:
        """Serve one incarnation: iterate to take letters. Leaving refuses the letters that were taken and not settled.

        What is told while nothing else waits or is in hand is shown to `at_once`, in the task of whoever tells it, which
        spares a switch of tasks; it must not wait. What it returns False for, or fails at, is among the letters.
        """
        with self._receive.clone() as inbox:
            letters = Letters(inbox, self._handled)
            self._at_once = at_once
            try:
                yield letters
            finally:
                self._at_once = None
                letters.refuse_taken(f"{self.name} stopped while it had this request; try again")

    def _handled(self) -> None:
        self._unhandled -= 1


@attrs.define(eq=False)
class Letters(Generic[Q, R]):
    """One incarnation's view of its mailbox: an async iterator that remembers what it has handed out."""

    _inbox: trio.MemoryReceiveChannel[Letter[Q, R]]
    _handled: Callable[[], None]  # told when a letter is no longer in hand
    _taken: set[Letter[Q, R]] = attrs.field(factory=set, init=False)
    _in_hand: bool = attrs.field(default=False, init=False)  # the last letter, until the next one is asked for

    def __aiter__(self) -> Self:
        """Iterate the letters as they come."""
        return self

    async def __anext__(self) -> Letter[Q, R]:
        """Return the next letter whose asker still waits. Cancellation loses nothing."""
        while True:
            self._done()
            letter = await self._inbox.receive()
            self._in_hand = True
            if not letter.abandoned.is_set():
                self._taken = {old for old in self._taken if old.is_owed} | {letter}
                return letter

    def refuse_taken(self, reason: str) -> None:
        """Refuse every letter that was handed out and not settled."""
        self._done()
        for letter in self._taken:
            # Each its own error: tasks that raise the same one write into each other's traceback.
            letter.refuse(Unavailable(reason))

    def _done(self) -> None:
        if self._in_hand:
            self._in_hand = False
            self._handled()


_NEVER, _ALREADY = trio.Event(), trio.Event()
_ALREADY.set()


def _note(message: Q) -> Letter[Q, R]:
    """Make a letter that expects no answer. All share their events, which do not change: several go by for each token."""
    return Letter(message, _NEVER, _ALREADY)
