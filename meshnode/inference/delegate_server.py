"""Coordinates requests that other nodes hand to this one; each goes the same way as a request of our own."""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager

import attrs
import structlog
import trio

from meshnode.errors import DeadlineExceeded, MeshnodeError, PeerUnreachable
from meshnode.inference.calls import Delegated, EventStream
from meshnode.inference.losses import hangs_up
from meshnode.inference.privacy import privacy_of
from meshnode.network.stage_links import StageLink
from meshnode.types.generation import Finished, GenerationEvent, GenerationRequest, Started
from meshnode.types.ids import PeerId, SessionId
from meshnode.wire.stage_messages import CancelDelegation, Delegate, DelegatedEvents, DelegationFailed, GrantEvents

__all__ = ["DelegateServer"]

_log = structlog.get_logger(__name__)
_MAX_WINDOW = 1024
_GRANT_PATIENCE = 60.0  # seconds an asker may let its answer lie before somebody else gets the turn

OpenGenerations = Callable[[Sequence[GenerationRequest], Delegated], AbstractAsyncContextManager[EventStream]]


@attrs.define(eq=False)
class _Served:
    """One delegation."""

    window: int  # messages that may be sent
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    granted: trio.Event = attrs.field(factory=trio.Event)

    def grant(self, count: int) -> None:
        self.window = min(_MAX_WINDOW, self.window + max(0, count))
        self.granted.set()

    async def turn(self) -> None:
        """Wait until one more message may be sent. Raises DeadlineExceeded when the asker takes none for too long."""
        with trio.move_on_after(_GRANT_PATIENCE):
            while self.window <= 0:
                self.granted = trio.Event()
                await self.granted.wait()
        if self.window <= 0:
            raise DeadlineExceeded(f"the asker has taken nothing for {_GRANT_PATIENCE:.0f} s")
        self.window -= 1


@attrs.define(eq=False)
class DelegateServer:
    """Delegations by asker and name; each is a task of `nursery` and ends with its link."""

    open_generations: OpenGenerations
    nursery: trio.Nursery
    limit: int = 256  # at once, a quarter of them for one asker; beyond it the queue's own refusal would come too late
    _served: dict[tuple[PeerId, SessionId], _Served] = attrs.field(factory=dict, init=False)

    def start(self, link: StageLink, message: Delegate) -> None:
        """Begin to serve one. A name that is in use, or one too many, is refused."""
        key = (link.peer, message.session)
        theirs = sum(peer == link.peer for peer, _ in self._served)
        if key in self._served or len(self._served) >= self.limit or theirs >= max(1, self.limit // 4):
            refusal = DelegationFailed(message.session, "overloaded", "this node coordinates as much as it can")
            self.nursery.start_soon(_send, link, refusal)
            return
        served = self._served[key] = _Served(min(_MAX_WINDOW, message.window))
        self.nursery.start_soon(self._serve, link, message, served)

    def grant(self, sender: PeerId, message: GrantEvents) -> None:
        """Let one go on."""
        if (served := self._served.get((sender, message.session))) is not None:
            served.grant(message.count)

    def cancel(self, sender: PeerId, message: CancelDelegation) -> None:
        """End one."""
        if (served := self._served.get((sender, message.session))) is not None:
            served.scope.cancel()

    async def _serve(self, link: StageLink, message: Delegate, served: _Served) -> None:
        """Run one to its end; nothing it raises is the router's crash."""
        try:
            with hangs_up(link), served.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_end_with_link, link, served.scope)
                    await self._run(link, message, served)
                    nursery.cancel_scope.cancel()
        except* MeshnodeError as group:
            error = group.exceptions[0]
            assert isinstance(error, MeshnodeError)
            await _send(link, DelegationFailed(message.session, error.code, str(error)[:2000]))
        except* Exception as group:  # noqa: BLE001  # the delegation's rim
            _log.error("delegated request failed", exc_info=group)
            await _send(link, DelegationFailed(message.session, "internal", "the coordinator failed; its log says why"))
        finally:
            del self._served[link.peer, message.session]

    async def _run(self, link: StageLink, message: Delegate, served: _Served) -> None:
        request = attrs.evolve(message.request, client=f"peer {link.peer}")
        named = None if message.peers is None else frozenset(message.peers)
        delegated = Delegated(message.resume, max(1, message.hops), privacy_of(message.privacy), named)
        async with self.open_generations([request], delegated) as events:
            async for _, event in events:
                await served.turn()
                await link.send(_wrapped(message.session, event))


def _wrapped(session: SessionId, event: GenerationEvent) -> DelegatedEvents:
    if isinstance(event, Started):
        return DelegatedEvents(session, started=event)
    if isinstance(event, Finished):
        return DelegatedEvents(session, finished=event)
    return DelegatedEvents(session, delta=event)


async def _end_with_link(link: StageLink, scope: trio.CancelScope) -> None:
    await link.closed.wait()
    scope.cancel()


async def _send(link: StageLink, message: DelegationFailed) -> None:
    try:
        await link.send(message)
    except PeerUnreachable:
        return
