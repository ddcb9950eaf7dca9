"""Makes the connections of ring links, in threads: whoever computes waits for no handshake.

A stranger has some seconds to show a token that is expected, and only so many may try at once.
"""

import contextlib
import ipaddress
import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import attrs

from meshnode.crypto.tls import dialler_context, is_presented, listener_context
from meshnode.engine.ring_socket import RingSocket
from meshnode.errors import MeshnodeError, RingBroken
from meshnode.types.rings import RingPlace
from meshnode.wire.envelopes import Envelope
from meshnode.wire.ring_messages import Attach, RingDoor, RingMessage

__all__ = ["Arrived", "Dialled", "DoorKey", "RingDoors", "key_of"]

DoorKey = tuple[tuple[str, ...], int, bytes]

_PATIENCE = 3.0  # seconds for a connection to be made, or for a stranger to say who it is
_STRANGERS = 32  # at once
_HOSTS = 8  # of a door that are tried
_DIALLING = 6.0  # seconds after which no further one is
# Seconds, a count, and milliseconds: after some half a minute a machine that says nothing is gone.
_GONE_AFTER = (("TCP_KEEPIDLE", 20), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 35_000))
_FIRST = 4096  # bytes, more than the first message has


@attrs.frozen(eq=False)
class Dialled:
    """What came of dialling a door: a link on which the first token has been shown, or why there is none."""

    key: DoorKey
    link: RingSocket | None
    why: str = ""


@attrs.frozen(eq=False)
class Arrived:
    """Somebody who showed a token that is expected, and what they have said so far."""

    link: RingSocket
    said: Sequence[Envelope[RingMessage]]


@attrs.frozen(eq=False)
class _OpenDoor:
    """Where strangers may come, each in a thread of its own."""

    certificate: bytes
    listen: tuple[str, ...]
    port: int
    listeners: Sequence[socket.socket]

    def is_of(self, place: RingPlace) -> bool:
        return (self.certificate, self.listen) == (place.certificate, place.listen)

    def close(self) -> None:
        for listener in self.listeners:
            with contextlib.suppress(OSError):  # in places only closing wakes whoever waits there, in others only this
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()


def key_of(door: RingDoor) -> DoorKey:
    """Return what the doors of one worker have in common."""
    return door.hosts, door.port, door.certificate


@attrs.define(eq=False)
class RingDoors:
    """Of one worker, for as long as its process lives. `results` has what the threads have made, once `bell` is readable."""

    is_expected: Callable[[bytes], bool]  # asked by threads
    bell: socket.socket = attrs.field(init=False)
    _rope: socket.socket = attrs.field(init=False)
    _made: "queue.SimpleQueue[Dialled | Arrived]" = attrs.field(factory=queue.SimpleQueue, init=False)
    _open: _OpenDoor | None = attrs.field(default=None, init=False)
    _strangers: threading.Semaphore = attrs.field(factory=lambda: threading.Semaphore(_STRANGERS), init=False)

    def __attrs_post_init__(self) -> None:
        self.bell, self._rope = socket.socketpair()
        self.bell.setblocking(False)
        self._rope.setblocking(False)

    def results(self) -> Iterator[Dialled | Arrived]:
        """Yield what has been made since the last look."""
        with contextlib.suppress(BlockingIOError):
            self.bell.recv(1024)
        while not self._made.empty():
            yield self._made.get()

    def listen(self, place: RingPlace) -> int:
        """Return the port of the door of a place, having opened it if need be; that of another place closes.

        Raises RingBroken, OSError and RuntimeError when that cannot be done; the old door stays then. Links stay in any case.
        """
        old = self._open
        if old is not None and old.is_of(place):
            return old.port
        context, listeners = listener_context(place.pem), _listeners(place)
        door = _OpenDoor(place.certificate, place.listen, listeners[0].getsockname()[1], listeners)
        try:
            for listener in listeners:
                _begin(self._receive, listener, context)
        except RuntimeError:  # no thread
            door.close()
            raise
        self._open = door
        if old is not None:
            old.close()
        return door.port

    def dial(self, door: RingDoor, number: int) -> None:
        """Connect to a door and show its token, as `number`; the result comes as Dialled."""
        _begin(self._dial, door, number)

    def _dial(self, door: RingDoor, number: int) -> None:
        reasons, until = [], time.monotonic() + _DIALLING
        for host in door.hosts[:_HOSTS]:
            if time.monotonic() > until:
                break
            try:
                link = _connect(host, door)
            except Exception as error:  # noqa: BLE001  # a host and a port are anything here, and somebody waits for the result
                reasons.append(f"{host[:40]}: {error}")
                continue
            try:
                link.send(Attach(number, door.token))
                link.socket.setblocking(False)
            except (OSError, MeshnodeError) as error:
                link.close()
                reasons.append(f"{host[:40]}: {error}")
            else:
                self._tell(Dialled(key_of(door), link))
                return
        self._tell(Dialled(key_of(door), None, "; ".join(reasons) or "no address"))

    def _receive(self, listener: socket.socket, context: ssl.SSLContext) -> None:
        while listener.fileno() >= 0:
            try:
                stranger, _ = listener.accept()
            except OSError:
                time.sleep(0.1)  # no descriptor left, for now, or the door has closed
                continue
            if not self._strangers.acquire(blocking=False):
                stranger.close()
                continue
            try:
                _begin(self._identify, stranger, context)
            except RuntimeError:  # no thread left, for now: the door stays open
                self._strangers.release()
                stranger.close()

    def _identify(self, stranger: socket.socket, context: ssl.SSLContext) -> None:
        tls: ssl.SSLSocket | None = None
        until = time.monotonic() + _PATIENCE
        try:
            _prepare(stranger)
            tls = context.wrap_socket(stranger, server_side=True)
            link = RingSocket(tls)
            said = _first_words(link, until)
            first = said[0].message
            if not isinstance(first, Attach) or not self.is_expected(first.token):
                raise RingBroken("a stranger showed no token that was given")
            tls.setblocking(False)
            self._tell(Arrived(link, said))
        except (OSError, MeshnodeError):
            (tls or stranger).close()
        finally:
            self._strangers.release()

    def _tell(self, made: Dialled | Arrived) -> None:
        self._made.put(made)
        with contextlib.suppress(BlockingIOError):  # then it has been rung often enough
            self._rope.send(b"\0")


def _listeners(place: RingPlace) -> Sequence[socket.socket]:
    """Return who listens at a place, all on one port. Raises RingBroken when the first cannot."""
    found: list[socket.socket] = []
    for host in place.listen:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            found.append(socket.create_server((host, found[0].getsockname()[1] if found else 0), family=family))
        except OSError as error:
            if found:
                continue  # IPv6 is missing in places
            raise RingBroken(f"cannot listen on {host} for other workers: {error.strerror}") from error
    return found


def _connect(host: str, door: RingDoor) -> RingSocket:
    ipaddress.ip_address(host)  # a name would make us ask our resolver what a peer wants
    connection = socket.create_connection((host, door.port), _PATIENCE)
    tls: ssl.SSLSocket | None = None
    try:
        _prepare(connection)
        tls = dialler_context().wrap_socket(connection)
        is_meant = is_presented(tls.getpeercert(binary_form=True), door.certificate)
    except (OSError, ValueError):  # ValueError: who answered was gone before the first word
        (tls or connection).close()
        raise
    if not is_meant:
        tls.close()
        raise RingBroken("another machine answers there: its certificate is not the one the coordinator has named")
    return RingSocket(tls)


def _prepare(connection: socket.socket) -> None:
    connection.settimeout(_PATIENCE)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # a machine that is switched off says nothing
    for option, value in _GONE_AFTER:
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _first_words(link: RingSocket, until: float) -> list[Envelope[RingMessage]]:
    said: list[Envelope[RingMessage]] = []
    while not said:
        link.socket.settimeout(max(0.01, until - time.monotonic()))
        data = link.socket.recv(_FIRST)
        if not data or time.monotonic() > until:
            raise RingBroken("a stranger said nothing")
        said.extend(link.codec.feed(data))
        if link.codec.skipped:
            raise RingBroken("a stranger said what no worker says first")
    return said


def _begin(function: Callable[..., None], *args: object) -> None:
    threading.Thread(target=function, args=args, name="ring door", daemon=True).start()
