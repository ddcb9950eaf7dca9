"""Who gets in at a worker's door, and what is said of a door that lets nobody in."""

import re
import select
import socket
import threading
import time

import msgspec
import pytest
from support.ring_workers import Door, Neighbour, handshaken, place_of, shut

from meshnode.crypto.tls import listener_context
from meshnode.engine import ring_doors
from meshnode.engine.ring_doors import Arrived, Dialled, RingDoors
from meshnode.engine.ring_socket import RingSocket
from meshnode.errors import RingBroken
from meshnode.network.certificates import make_credentials
from meshnode.wire.frames import Frame, FrameLimits, encode_frame
from meshnode.wire.ring_messages import Attach, Detach, Lap, RingDoor

pytestmark = pytest.mark.processes

TOKEN = bytes(range(32))


class Doorkeeper:
    """A worker's doors, and what its main thread finds when the bell rings."""

    def __init__(self, credentials):
        self.doors, self.made = RingDoors({TOKEN}.__contains__), []
        self.open(credentials)

    def open(self, credentials):
        port = self.doors.listen(place_of(credentials))
        self.door = RingDoor(("127.0.0.1",), port, credentials.fingerprint, TOKEN)

    def next(self, kind, seconds=20):
        """Return the next of a kind; None when none comes."""
        until = time.monotonic() + seconds
        while not (found := [each for each in self.made if isinstance(each, kind)]):
            if not select.select([self.doors.bell], [], [], max(0, until - time.monotonic()))[0]:
                return None
            self.made += self.doors.results()
        self.made.remove(found[0])
        return found[0]

    def dial(self, door):
        self.doors.dial(door, 7)
        return self.next(Dialled)

    def refused(self, door):
        dialled = self.dial(door)
        assert dialled.link is None
        return dialled.why

    def lets_in(self):
        """Say whether somebody gets in who has a token."""
        dialled = self.dial(self.door)
        if dialled.link is None:
            return False
        dialled.link.close()
        arrived = self.next(Arrived)
        arrived.link.close()
        assert arrived.said[0].message == Attach(7, TOKEN)
        return True


@pytest.fixture(scope="module")
def keeper(credentials):
    found = Doorkeeper(credentials)
    yield found
    shut(found.doors)


def has_ended(stranger):
    stranger.settimeout(20)
    try:
        while stranger.recv(1 << 16):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


def plain(door):
    return socket.create_connection((door.hosts[0], door.port), 20)


def says(*messages):
    def begin(door):
        link = RingSocket(handshaken(door))
        for message in messages:
            link.send(message)
        return link.socket

    return begin


def speaks_http(door):
    connection = plain(door)
    connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
    return connection


def speaks_garbage(door):
    connection = handshaken(door)
    connection.send(b"\xff" * 300)
    return connection


def speaks_of_what_nobody_knows(door):
    connection = handshaken(door)
    header = msgspec.msgpack.encode({"type": "from_the_future"})
    connection.send(encode_frame(Frame(10, 0, header), FrameLimits({})))
    return connection


def leaves(door):
    connection = handshaken(door)
    connection.shutdown(socket.SHUT_WR)
    return connection


@pytest.mark.parametrize(
    "begin",
    [
        speaks_http,
        speaks_garbage,
        speaks_of_what_nobody_knows,
        leaves,
        says(Attach(0, bytes(32))),
        says(Attach(0, b"")),
        says(Lap(0, 1, 0)),
        says(Detach(0)),
    ],
    ids=["no-tls", "garbage", "unknown", "gone", "wrong-token", "no-token", "lap", "detach"],
)
def test_a_stranger_is_sent_away_and_whoever_comes_after_gets_in(keeper, begin):
    with begin(keeper.door) as stranger:
        assert has_ended(stranger)
    assert keeper.next(Arrived, 0) is None, "the main thread has heard of a stranger"
    assert keeper.lets_in()


def test_who_says_nothing_has_its_time_and_no_more_than_so_many_may_try_at_once(credentials, monkeypatch):
    monkeypatch.setattr(ring_doors, "_PATIENCE", 60.0)  # more than this machine can need for what follows
    monkeypatch.setattr(ring_doors, "_STRANGERS", 2)
    keeper = Doorkeeper(credentials)
    silent = [plain(keeper.door), handshaken(keeper.door)]
    with plain(keeper.door) as third:
        assert has_ended(third), "a third one is let in, though two have not said who they are"
    for each in silent:
        each.close()
    let_in_at_last(keeper)
    monkeypatch.setattr(ring_doors, "_PATIENCE", 0.4)
    silent = [plain(keeper.door), handshaken(keeper.door)]
    assert all(map(has_ended, silent))
    for each in silent:
        each.close()
    let_in_at_last(keeper)
    shut(keeper.doors)


def let_in_at_last(keeper):
    until = time.monotonic() + 20
    while not keeper.lets_in():  # the threads of strangers end some moments after their connections
        assert time.monotonic() < until


def test_a_stranger_has_no_more_time_for_its_token_where_tls_has_taken_it_all(credentials, monkeypatch):
    class Slow:
        def __init__(self, pem):
            self._context = listener_context(pem)

        def wrap_socket(self, stranger, **how):
            time.sleep(0.2)
            return self._context.wrap_socket(stranger, **how)

    monkeypatch.setattr(ring_doors, "_PATIENCE", 0.2)
    monkeypatch.setattr(ring_doors, "listener_context", Slow)
    keeper = Doorkeeper(credentials)
    monkeypatch.setattr(ring_doors, "_prepare", lambda stranger: stranger.settimeout(20))
    with says(Attach(0, TOKEN))(keeper.door) as stranger:
        assert has_ended(stranger)
    assert keeper.next(Arrived, 0) is None
    shut(keeper.doors)


def test_a_door_with_another_certificate_takes_the_place_of_the_old_one(credentials):
    """A network that begins anew has a new one, and tells peers to expect it. Who has come in stays."""
    others = set(threading.enumerate())
    keeper, after = Doorkeeper(credentials), make_credentials()
    (listening,) = set(threading.enumerate()) - others
    neighbour = Neighbour.dialled(keeper.door)
    arrived = keeper.next(Arrived).link
    before = keeper.door
    keeper.open(after)
    listening.join(20)
    assert not listening.is_alive()
    assert keeper.lets_in()
    assert "refused" in keeper.refused(before)
    wrong = RingDoor(before.hosts, keeper.door.port, before.certificate, TOKEN)
    assert "certificate" in keeper.refused(wrong)
    neighbour.link.send(Detach(0))
    select.select([arrived.socket], [], [], 20)
    assert [each.message for each in arrived.receive()] == [Detach(0)]
    for link in (neighbour.link, arrived):
        link.close()
    shut(keeper.doors)


def test_another_machine_that_answers_hears_no_token(keeper, credentials):
    door = Door(make_credentials(), presented=credentials)
    try:
        keeper.doors.dial(door.ring_door(TOKEN), 0)
        neighbour = door.answer()
        assert "its certificate is not the one the coordinator has named" in keeper.next(Dialled).why
        while neighbour.look():
            time.sleep(0.001)
        assert neighbour.heard == []
        neighbour.close()
    finally:
        door.close()


def test_a_door_that_cannot_be_reached_is_named_with_the_reason(keeper, credentials):
    door, closed = keeper.door, Door(credentials)
    nobody = closed.ring_door(TOKEN)
    closed.close()
    assert re.match(r"127\.0\.0\.1: .*refused", keeper.refused(nobody))
    named = RingDoor(("localhost", "mesh.example"), door.port, door.certificate, TOKEN)
    assert "localhost: 'localhost' does not appear to be an IPv4 or IPv6 address; mesh.example: " in keeper.refused(
        named
    )
    assert keeper.refused(RingDoor((), door.port, door.certificate, TOKEN)) == "no address"
    for port in (-1, (1 << 64) - 1):
        assert "127.0.0.1: " in keeper.refused(RingDoor(door.hosts, port, door.certificate, TOKEN))


def test_the_next_address_is_tried_where_one_leads_nowhere(keeper):
    door = keeper.door
    dialled = keeper.dial(RingDoor(("a.name", "127.0.0.1"), door.port, door.certificate, TOKEN))
    for each in (dialled, keeper.next(Arrived)):
        each.link.close()


def test_an_address_that_is_missing_is_done_without_unless_it_is_the_first(credentials):
    doors = RingDoors({TOKEN}.__contains__)
    with pytest.raises(RingBroken, match=r"cannot listen on 192\.0\.2\.1 for other workers: .*assign"):
        doors.listen(place_of(credentials, ["192.0.2.1", "127.0.0.1"]))
    port = doors.listen(place_of(credentials, ["127.0.0.1", "192.0.2.1"]))
    assert doors.listen(place_of(credentials, ["127.0.0.1", "192.0.2.1"])) == port
    neighbour = Neighbour.dialled(RingDoor(("127.0.0.1",), port, credentials.fingerprint, TOKEN))
    assert select.select([doors.bell], [], [], 20)[0]
    (arrived,) = doors.results()
    arrived.link.close()
    neighbour.close()
    shut(doors)
