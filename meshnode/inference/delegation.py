"""Hands a request to the node that coordinates its route best, and takes its events from there.

The asker needs neither weights nor tokenizer. When the coordinator is lost, another one gets the request with the tokens whose
text has been delivered, and goes on behind them.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self

import attrs
import trio

from meshnode.errors import MeshnodeError, Overloaded, PeerError, PeerUnreachable, Unavailable
from meshnode.inference.calls import Delegated
from meshnode.inference.losses import StageLost
from meshnode.network.stage_links import StageLink, StageLinks
from meshnode.types.generation import Delta, GenerationRequest
from meshnode.types.ids import ModelId, PeerId, SessionId, new_session_id
from meshnode.wire.failures import Failed, error_from
from meshnode.wire.stage_messages import (
    CancelDelegation,
    Delegate,
    DelegatedEvents,
    DelegationFailed,
    GrantEvents,
    Probe,
)

__all__ = ["Delegation", "Delegations"]

_WINDOW = 64  # messages a coordinator may be ahead of its asker
_SLACK = 1  # an end needs no grant
_GRANT = 16
_LOOK = 0.25  # seconds between looks at the link
_QUIET = 3.0  # seconds without a message before the coordinator is asked for a sign of life
_PROBE = 2.0  # seconds for it

_ELSEWHERE = frozenset({"no_route", "unavailable", "session_lost", "overloaded", "worker_lost", "internal", "engine"})
"""Failures that another coordinator may not have; the others are the request's own."""

_Message = DelegatedEvents | DelegationFailed


@attrs.define(eq=False)
class Delegations:
    """The requests of this node that others coordinate, by peer and name."""

    links: StageLinks
    _waiting: dict[tuple[PeerId, SessionId], "_Inbox"] = attrs.field(factory=dict, init=False)

    def push(self, sender: PeerId, message: _Message) -> bool:
        """Take what a coordinator sends, if somebody waits for it. Who sends more than it was granted is left."""
        inbox = self._waiting.get((sender, message.session))
        if inbox is None:
            return False
        if inbox.granted == 0:
            inbox.send.close()  # the asker sees the end and goes elsewhere
            del self._waiting[sender, message.session]
            return False
        inbox.granted -= 1
        inbox.send.send_nowait(message)
        return True

    @asynccontextmanager
    async def open(
        self, peer: PeerId, model: ModelId, request: GenerationRequest, delegated: Delegated
    ) -> AsyncIterator["Delegation"]:
        """Delegate and yield the events. Leaving, by cancellation too, ends the work there. Raises StageLost."""
        name = new_session_id()
        send, receive = trio.open_memory_channel[_Message](_WINDOW + _SLACK)
        inbox = self._waiting[peer, name] = _Inbox(send)
        delegation: Delegation | None = None
        try:
            link = await self.links.to(peer)
            delegation = Delegation(name, link, receive, inbox)
            wanted, rule = attrs.evolve(request, model=model), delegated.privacy.value
            named = None if delegated.peers is None else tuple(sorted(delegated.peers))
            await link.send(Delegate(name, wanted, _WINDOW, delegated.resume, delegated.hops, rule, named))
            yield delegation
        except PeerError as error:
            raise StageLost(peer, str(error)) from error
        finally:
            self._waiting.pop((peer, name), None)
            send.close()
            receive.close()
            if delegation is not None and not delegation.is_over:
                with trio.move_on_after(1, shield=True):
                    await _cancel(delegation.link, name)


@attrs.define(eq=False)
class _Inbox:
    """Where the messages of one delegation arrive, and how many more may come: never more than there is room for."""

    send: trio.MemorySendChannel[_Message]
    granted: int = _WINDOW + _SLACK


@attrs.define(eq=False)
class Delegation:
    """The events of one delegated request; iterate them."""

    name: SessionId
    link: StageLink
    _receive: trio.MemoryReceiveChannel[_Message]
    _inbox: _Inbox
    is_over: bool = attrs.field(default=False, init=False)
    _taken: int = attrs.field(default=0, init=False)

    def __aiter__(self) -> Self:
        """Iterate the events."""
        return self

    async def __anext__(self) -> DelegatedEvents:
        """Return the next. Raises StageLost when another coordinator should be asked, or what the request failed with."""
        if self.is_over:
            raise StopAsyncIteration
        message = await self._next()
        self.is_over = isinstance(message, DelegationFailed) or message.finished is not None
        if isinstance(message, DelegationFailed):
            raise _failure(self.link.peer, message)
        if message.started is None and message.finished is None and message.delta in (None, Delta()):
            raise StageLost(self.link.peer, "it sends messages that say nothing")
        self._taken += 1
        if self._taken % _GRANT == 0 and not self.is_over:
            self._inbox.granted += _GRANT
            await self.link.send(GrantEvents(self.name, _GRANT))
        return message

    async def _next(self) -> _Message:
        """Wait for a message; while none comes, make sure that the coordinator lives."""
        silent = 0.0  # seconds
        while True:
            with trio.move_on_after(_LOOK):
                try:
                    return await self._receive.receive()
                except trio.EndOfChannel:
                    raise StageLost(self.link.peer, "it sent more than it was granted") from None
            if self.link.closed.is_set():
                raise StageLost(self.link.peer, "its link ended")
            silent += _LOOK
            if silent >= _QUIET:
                await self._probe()
                silent = 0.0

    async def _probe(self) -> None:
        try:
            await self.link.ask(Probe(), timeout=_PROBE)
        except Overloaded:
            return  # that it is asked too often is a sign of life
        except MeshnodeError as error:
            raise StageLost(self.link.peer, f"no sign of life: {error}") from error


def _failure(peer: PeerId, message: DelegationFailed) -> MeshnodeError:
    error = error_from(Failed(message.code, message.message), Unavailable)
    if message.code in _ELSEWHERE:
        return StageLost(peer, message.message, busy=isinstance(error, Overloaded))
    return error


async def _cancel(link: StageLink, name: SessionId) -> None:
    try:
        await link.send(CancelDelegation(name))
    except PeerUnreachable:
        return
