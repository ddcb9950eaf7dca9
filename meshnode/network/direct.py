"""Direct connections: TLS 1.3 over TCP, from the first packet until it is known who is at the other end."""

import contextlib
import ipaddress
import ssl
from collections import Counter
from collections.abc import Iterator, Sequence

import attrs
import trio

from meshnode.crypto.tls import is_presented
from meshnode.errors import ConfigError, PeerUnreachable
from meshnode.wire.control_messages import Ticket

__all__ = ["Anteroom", "Tls", "dial", "is_address", "listen", "origin_of"]

Tls = trio.SSLStream[trio.SocketStream]

_HEAD_START = 0.25  # seconds an address has before the next one is tried too (RFC 8305)


async def listen(hosts: Sequence[str], port: int) -> list[trio.SocketListener]:
    """Listen on the same port (0: any) of all hosts; those after the first may be missing, as IPv6 is in places.

    Raises ConfigError when the first cannot be listened on.
    """
    listeners: list[trio.SocketListener] = []
    for host in hosts:
        try:
            found = await trio.open_tcp_listeners(port, host=host)
        except OSError as error:
            if listeners:
                continue
            raise ConfigError(f"cannot listen for direct links on {host} port {port}: {error.strerror}") from error
        listeners += found
        port = found[0].socket.getsockname()[1]
    return listeners


async def dial(ticket: Ticket, context: ssl.SSLContext) -> Tls:
    """Connect to the first of a ticket's hosts that presents its certificate. Raises PeerUnreachable with the reasons.

    Hosts are tried together, each with a head start on the next; an address may lead to another machine than the one that
    named it, so the certificate decides the race, not the connection.
    """
    reasons: list[str] = []
    winners: list[Tls] = []

    async def attempt(host: str, over: trio.Event) -> None:
        try:
            stream = await _connect(host, ticket, context)
        except (OSError, trio.BrokenResourceError, PeerUnreachable) as error:
            reasons.append(f"{host}: {error}")
        else:
            winners.append(stream)
            nursery.cancel_scope.cancel()
        over.set()

    try:
        async with trio.open_nursery() as nursery:
            for host in filter(is_address, ticket.hosts):  # a name would make us ask our resolver what a peer wants
                over = trio.Event()
                nursery.start_soon(attempt, host, over)
                with trio.move_on_after(_HEAD_START):
                    await over.wait()
        if not winners:
            raise PeerUnreachable(f"no direct way ({'; '.join(reasons) or 'no address'})")
        winner = winners.pop(0)
    finally:
        for late in winners:
            await trio.aclose_forcefully(late)
    return winner


async def _connect(host: str, ticket: Ticket, context: ssl.SSLContext) -> Tls:
    stream = await trio.open_tcp_stream(host, ticket.port)
    tls = trio.SSLStream(stream, context)
    try:
        await tls.do_handshake()
        _check(tls.getpeercert(binary_form=True), ticket)
    except BaseException:
        await trio.aclose_forcefully(tls)
        raise
    return tls


def _check(certificate: bytes | None, ticket: Ticket) -> None:
    if not is_presented(certificate, ticket.certificate):
        raise PeerUnreachable("another machine answers there: its certificate is not the one the peer has named")


@attrs.define(eq=False)
class Anteroom:
    """Connections of which it is not known yet whose they are: so many at most, and each for a short time.

    When there is one too many, the oldest has to go of the place that most of them come from: a flood turns out itself.
    """

    limit: int
    patience: float  # seconds
    _guests: dict[int, tuple[str, trio.CancelScope]] = attrs.field(factory=dict, init=False)

    @contextlib.contextmanager
    def admit(self, origin: str) -> Iterator[None]:
        """Run the body until the time is up or the place is needed; then it is cancelled."""
        if len(self._guests) >= self.limit:
            crowd = Counter(place for place, _ in self._guests.values()).most_common(1)[0][0]
            oldest = next(number for number, (place, _) in self._guests.items() if place == crowd)
            self._guests.pop(oldest)[1].cancel()
        with trio.move_on_after(self.patience) as scope:
            self._guests[id(scope)] = (origin, scope)
            try:
                yield
            finally:
                self._guests.pop(id(scope), None)

    def __len__(self) -> int:
        return len(self._guests)


def origin_of(stream: trio.SocketStream) -> str:
    """Return where a connection comes from: an IPv4 address, or the network of an IPv6 one, of which one host has many."""
    try:
        address = ipaddress.ip_address(stream.socket.getpeername()[0].partition("%")[0])
    except (OSError, ValueError):
        return "gone"
    return str(address) if address.version == 4 else str(ipaddress.ip_network((address, 64), strict=False))


def is_address(host: str) -> bool:
    """Say whether this is an IP address and no name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
