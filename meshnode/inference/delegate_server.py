"""Coordinates requests that other nodes hand to this one; each goes the same way as a request of our own."""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager

import attrs
import structlog
import trio

from meshnode.errors import MeshnodeError, PeerUnreachable
from meshnode.inference.calls import Delegated, EventStream
from meshnode.network.stage_links import StageLink
from meshnode.types.generation import Finished, GenerationEvent, GenerationRequest, Started
from meshnode.types.ids import PeerId, SessionId
from meshnode.wire.stage_messages import CancelDelegation, Delegate, DelegatedEvents, DelegationFailed, GrantEvents

__all__ = ["DelegateServer"]

_log = structlog.get_logger(__name__)
_MAX_WINDOW = 1024

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
        """Wait until one more message may be sent."""
        while self.window <= 0:
            self.granted = trio.Event()
            await self.granted.wait()
        self.window -= 1


@attrs.define(eq=False)
class DelegateServer:
    """Delegations by asker and name; each is a task of `nursery` and ends with its link."""

    open_generations: OpenGenerations
    nursery: trio.Nursery
    limit: int = 256  # at once; beyond it the queue's own refusal would come too late
    _served: dict[tuple[PeerId, SessionId], _Served] = attrs.field(factory=dict, init=False)

    def start(self, link: StageLink, message: Delegate) -> None:
        """Begin to serve one. A name that is in use, or one too many, is refused."""
        key = (link.peer, message.session)
        if key in self._served or len(self._served) >= self.limit:
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
            with served.scope:
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
        async with self.open_generations([request], Delegated(message.resume, message.hops)) as events:
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
