"""Connections through a third node, for two that cannot reach each other.

    B opens RELAY to R and asks it to be reachable there; that stream stays open as long as B wants to be.
    A opens RELAY to R and asks for B. R opens INCOMING to B, and from then on copies bytes both ways.
    Over those bytes A and B do the handshake that they would do over a socket, and have a connection like any other.

So R sees who speaks with whom, and how much; it can read nothing and can be nobody else. libp2p's own relay was left alone: it
ends a connection after two minutes or 128 KiB by default, which is made for finding a direct way and not for staying.
"""

from collections import Counter
from collections.abc import Callable

import attrs
import msgspec
import structlog
import trio

from meshnode.errors import PeerError, PeerRefused, PeerUnreachable
from meshnode.network.addresses import parse_address
from meshnode.network.libp2p_connections import Connections
from meshnode.network.libp2p_streams import Carrier, LibP2PStream
from meshnode.network.short_messages import ask, receive_message, send_message
from meshnode.types.ids import PeerId, short

__all__ = ["Relay"]

_PATIENCE = 10.0  # seconds for one question
_RESERVATIONS = 128  # peers that are reached through this node
_CIRCUITS = 128  # pairs that speak through this node now
_CIRCUITS_PER_PEER = 16
_MAX_ADDRESSES = 8
_CHUNK = 64 << 10

_log = structlog.get_logger(__name__)


class Reserve(msgspec.Struct, frozen=True, tag="reserve"):
    """Let others reach me through you, for as long as this stream is open."""


class Connect(msgspec.Struct, frozen=True, tag="connect"):
    """Lead this stream to a peer."""

    peer: str


class Answer(msgspec.Struct, frozen=True):
    """Yes, or why not."""

    refused: str = ""
    addresses: tuple[str, ...] = ()  # where the relay is reached


class Incoming(msgspec.Struct, frozen=True):
    """Somebody wants to speak with you; the handshake will say who."""


@attrs.define(eq=False)
class Relay:
    """Both ends and the middle of relayed connections."""

    _own: PeerId
    _connections: Connections
    _network: str  # names the network in the protocols: others are not served
    _addresses: Callable[[], tuple[str, ...]]  # where this node is reached directly
    _nursery: trio.Nursery
    _reserved: dict[PeerId, LibP2PStream] = attrs.field(factory=dict, init=False)  # those who are reached through us
    _circuits: Counter[PeerId] = attrs.field(factory=Counter, init=False)
    _through: dict[PeerId, tuple[str, ...]] = attrs.field(
        factory=dict, init=False
    )  # relays of ours: our addresses there

    def open(self, *, serve: bool) -> None:
        """Accept what comes through relays, and with `serve` be one."""
        self._connections.add_handler(self._protocol("incoming"), self._accept_incoming)
        if serve:
            self._connections.add_handler(self._protocol("relay"), self._serve)

    def addresses(self) -> tuple[str, ...]:
        """Return our multiaddrs through the relays that hold a place for us now."""
        return tuple(address for addresses in self._through.values() for address in addresses)

    def relays(self) -> frozenset[PeerId]:
        """Return the relays that hold a place for us now."""
        return frozenset(self._through)

    async def reserve(self, relay: PeerId) -> str:
        """Be reachable through a connected peer until it or we go; return the first address. Raises PeerError."""
        if relay in self._through:
            return self._through[relay][0]
        stream = await self._connections.open_stream(relay, self._protocol("relay"))
        try:
            answer = await self._ask(stream, Reserve())
        except BaseException:
            await stream.aclose()
            raise
        addresses = tuple(_relayed(answer.addresses[:_MAX_ADDRESSES], relay, self._own))
        if not addresses:
            await stream.aclose()
            raise PeerUnreachable(f"{short(relay)} does not know where it is reached itself")
        self._through[relay] = addresses
        self._nursery.start_soon(self._hold, relay, stream)
        return addresses[0]

    async def dial(self, relay: PeerId, peer: PeerId) -> None:
        """Make a connection to `peer` through a connected relay. Raises PeerError."""
        stream = await self._connections.open_stream(relay, self._protocol("relay"))
        try:
            await self._ask(stream, Connect(peer))
            await self._connections.secure_outbound(Carrier(stream, None), peer, relayed=True)
        except BaseException:
            await stream.aclose()
            raise

    async def _hold(self, relay: PeerId, stream: LibP2PStream) -> None:
        """Keep our place at a relay until it is lost."""
        try:
            await stream.receive_some()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the relay has gone, and with it the place
        finally:
            del self._through[relay]
            await stream.aclose()
        _log.info("relay lost", relay=short(relay))

    async def _accept_incoming(self, stream: LibP2PStream) -> None:
        if stream.peer not in self._through:
            return
        await receive_message(stream, Incoming)
        await send_message(stream, Answer())
        arrival = await self._connections.secure_inbound(Carrier(stream, None), relayed=True)
        await arrival.ended.wait()

    # In the middle

    async def _serve(self, stream: LibP2PStream) -> None:
        with trio.fail_after(_PATIENCE):
            question = await receive_message(stream, Reserve | Connect)  # type: ignore[arg-type]  # a union is no type
        try:
            if isinstance(question, Reserve):
                await self._serve_reservation(stream)
            else:
                await self._serve_circuit(stream, PeerId(question.peer))
        except PeerError as error:
            with trio.move_on_after(_PATIENCE):
                await send_message(stream, Answer(refused=str(error)))

    async def _serve_reservation(self, stream: LibP2PStream) -> None:
        old = self._reserved.get(stream.peer)
        if old is None and len(self._reserved) >= _RESERVATIONS:
            raise PeerRefused(f"{_RESERVATIONS} peers are reached through this node already")
        self._reserved[stream.peer] = stream
        if old is not None:
            await old.aclose()
        try:
            await send_message(stream, Answer(addresses=self._addresses()[:_MAX_ADDRESSES]))
            await stream.receive_some()  # it says no more: what comes is its end
        except trio.BrokenResourceError:
            pass  # it has gone
        finally:
            if self._reserved.get(stream.peer) is stream:
                del self._reserved[stream.peer]

    async def _serve_circuit(self, near: LibP2PStream, peer: PeerId) -> None:
        if peer not in self._reserved:
            raise PeerRefused(f"{short(peer)} is not reached through this node")
        if (
            self._circuits.total() >= 2 * _CIRCUITS
            or max(self._circuits[near.peer], self._circuits[peer]) >= _CIRCUITS_PER_PEER
        ):
            raise PeerRefused("this node carries as much as it can for others")
        self._circuits.update((near.peer, peer))
        try:
            far = await self._connections.open_stream(peer, self._protocol("incoming"))
            try:
                await self._ask(far, Incoming())
                await send_message(near, Answer())
                await _splice(near, far)
            finally:
                await far.aclose()
        finally:
            self._circuits.subtract((near.peer, peer))
            self._circuits += Counter()  # forgets those at nought

    async def _ask(self, stream: LibP2PStream, question: object) -> Answer:
        answer = await ask(stream, question, Answer, _PATIENCE)
        if answer.refused:
            raise PeerRefused(f"{short(stream.peer)} does not relay: {answer.refused}")
        return answer

    def _protocol(self, name: str) -> str:
        return f"/meshnode/{self._network}/{name}/1"


async def _splice(near: LibP2PStream, far: LibP2PStream) -> None:
    """Copy both ways until either has ended."""

    async def copy(source: LibP2PStream, target: LibP2PStream) -> None:
        try:
            while data := await source.receive_some(_CHUNK):
                await target.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the other one is told by the close
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(copy, near, far)
        nursery.start_soon(copy, far, near)


def _relayed(addresses: tuple[str, ...], relay: PeerId, own: PeerId) -> list[str]:
    """Return our addresses at a relay, from what it says are its own."""
    ours = []
    for text in addresses:
        try:
            address = parse_address(text)
        except ValueError:
            continue
        if address.is_direct and address.peer == relay:
            ours.append(str(attrs.evolve(address, peer=own, relay=relay)))
    return ours
