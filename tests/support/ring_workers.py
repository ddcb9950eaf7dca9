"""Workers of a ring in one process: what their main threads own, over real connections, and neighbours that say what they like."""

import itertools
import socket
import time

import attrs

from meshnode.crypto.tls import dialler_context
from meshnode.engine.batching import Batch
from meshnode.engine.ring_socket import RingSocket
from meshnode.engine.rings import Rings
from meshnode.engine.worker_messages import BatchLimits, DoorOpened, EnterRing, Envelope, OpenDoor, RingEntered
from meshnode.errors import RingBroken
from meshnode.types.ids import SessionId
from meshnode.types.rings import RingPlace
from meshnode.wire.failures import Failed
from meshnode.wire.ring_messages import Attach, RingDoor

__all__ = [
    "ROW",
    "Door",
    "Neighbour",
    "RingWorker",
    "StageWorker",
    "empty",
    "forget",
    "handshaken",
    "is_broken",
    "join",
    "passed",
    "place_of",
    "retire",
    "shut",
    "turn",
]

ROW = b"\x80\x3f" * 8
HOST = "127.0.0.1"
_PATIENCE = 5.0  # seconds for what takes some milliseconds where nobody else computes


def place_of(credentials, listen=(HOST,)):
    return RingPlace(tuple(listen), (HOST,), credentials.fingerprint, credentials.pem)


class _Worker:
    """What its daemon has heard, by exchange, in order."""

    def __init__(self, place):
        self.place, self._heard, self._numbers = place, {}, itertools.count(1)
        self.bodies = {}

    def _hear(self, envelope):
        self._heard.setdefault(envelope.exchange, []).append(envelope.message)
        if envelope.body:
            self.bodies[envelope.exchange] = envelope.body

    def said(self, exchange):
        return self._heard.get(exchange, [])

    def failures(self, exchange):
        return [message for message in self.said(exchange) if isinstance(message, Failed)]

    def has_entered(self, exchange):
        return any(isinstance(message, RingEntered) for message in self.said(exchange))

    def door(self, session):
        """Expect a neighbour for the session, and return where."""
        (opened,) = self.said(self.expect(session))
        assert isinstance(opened, DoorOpened), opened
        return RingDoor(self.place.hosts, opened.port, self.place.certificate, opened.token)

    def _stirred(self):
        return frozenset(descriptor for descriptor, _ in self.rings.poller.poll(0))


class RingWorker(_Worker):
    """Only the rings: what laps would be computed is noted."""

    def __init__(self, place):
        super().__init__(place)
        self.rings, self.laps = Rings(self._hear), []

    def expect(self, session):
        exchange = next(self._numbers)
        self.rings.expect(exchange, SessionId(session), self.place)
        return exchange

    def enter(self, session, door, *, tells=False):
        exchange = next(self._numbers)
        self.rings.enter(exchange, SessionId(session), door, tells=tells)
        return exchange

    def turn(self):
        self.rings.take(self._stirred(), lambda session, lap, body: self.laps.append((session, lap, body)))


class StageWorker(_Worker):
    """A loaded stage with sessions, as the worker's main thread runs it."""

    def __init__(self, place, stage):
        super().__init__(place)
        self.stage, self.batch = stage, Batch(stage, BatchLimits(96, 32), self._hear)
        self.rings = self.batch.rings

    def ask(self, message, body=b""):
        exchange = next(self._numbers)
        self.batch.accept(Envelope(exchange, message, body))
        return exchange

    def expect(self, session):
        return self.ask(OpenDoor(SessionId(session), self.place))

    def enter(self, session, door, *, tells=False):
        return self.ask(EnterRing(SessionId(session), door, tells))

    def turn(self):
        self.batch.take_laps(self._stirred())
        self.batch.step()


def turn(workers, until):
    """Let the main threads of `workers` go round until it is so."""
    end = time.monotonic() + _PATIENCE
    while not until():
        assert time.monotonic() < end, "it has not come about"
        for worker in workers:
            worker.turn()
        time.sleep(0.0002)  # for the threads that connect


def empty(*workers):
    """End all links, as at the end of a process, those that are being made included."""
    turn(workers, lambda: not any(worker.rings._dialling for worker in workers))
    for worker in workers:
        for link in tuple(worker.rings._links):
            worker.rings._end(link, RingBroken("the test is over"))


def forget(*workers):
    """Take the sessions that a test has named out of their rings, and end what is left."""
    for worker in workers:
        worker.laps.clear()
        for name in "abcd":
            worker.rings.leave(SessionId(name))
    empty(*workers)


def retire(*workers):
    """End all that a worker's process would have taken with it."""
    empty(*workers)
    for worker in workers:
        if worker.rings._doors is not None:
            shut(worker.rings._doors)


def shut(doors):
    """Close the door, whose threads end with it, and who has come in and was not looked at."""
    if doors._open is not None:
        doors._open.close()
    for made in doors.results():
        if made.link is not None:
            made.link.close()
    doors.bell.close()
    doors._rope.close()


def is_broken(worker, exchange, *, why=""):
    """Say whether the daemon has heard, once, that the ring is broken."""
    failures = worker.failures(exchange)
    assert len(failures) <= 1
    assert all(failed.code == RingBroken.code and why in failed.message for failed in failures), failures
    return bool(failures)


def passed(worker, name):
    return [(lap.step, lap.position, body) for session, lap, body in worker.laps if session == name]


def join(places):
    """Have sessions, (worker, name) in the order of the ring, enter it; return the exchanges on which their daemons hear."""
    doors = [worker.door(name) for worker, name in places]
    found = [worker.enter(name, door) for (worker, name), door in zip(places, doors[1:] + doors[:1], strict=True)]
    workers = list({id(worker): worker for worker, _ in places}.values())
    turn(workers, lambda: all(w.has_entered(exchange) for (w, _), exchange in zip(places, found, strict=True)))
    return found


def handshaken(door):
    """Return a connection to a door over which nothing has been said."""
    connection = socket.create_connection((door.hosts[0], door.port), _PATIENCE)
    return dialler_context().wrap_socket(connection)


@attrs.define(eq=False)
class Neighbour:
    """One end of a ring link that the test holds."""

    link: RingSocket
    heard: list = attrs.field(factory=list)

    @classmethod
    def dialled(cls, door, number=0):
        """Be the worker before the one whose door it is."""
        found = cls(RingSocket(handshaken(door)))
        found.link.send(Attach(number, door.token))
        found.link.socket.setblocking(False)
        return found

    def look(self):
        """Return whether the other side is there, having taken what it said."""
        try:
            while found := [envelope.message for envelope in self.link.receive()]:
                self.heard += found
        except RingBroken:
            return False
        return True

    def close(self):
        self.link.close()


class Door:
    """A door that the test answers at: be the worker behind."""

    def __init__(self, credentials, presented=None):
        self._credentials = credentials
        self._listener = socket.create_server((HOST, 0))
        self._listener.settimeout(_PATIENCE)
        self._port = self._listener.getsockname()[1]
        self._fingerprint = (presented or credentials).fingerprint

    def ring_door(self, token=bytes(32)):
        return RingDoor((HOST,), self._port, self._fingerprint, token)

    def answer(self):
        """Take in who dials; what they have said lies in the neighbour's connection."""
        connection, _ = self._listener.accept()
        connection.settimeout(_PATIENCE)
        tls = self._credentials.context.wrap_socket(connection, server_side=True)
        tls.setblocking(False)
        return Neighbour(RingSocket(tls))

    def close(self):
        self._listener.close()
