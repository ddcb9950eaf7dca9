"""What becomes of sessions when the connection that they go by lets go, and how much it takes."""

import socket
import struct
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.ring_workers import (
    ROW,
    Door,
    Neighbour,
    is_broken,
    join,
    passed,
    turn,
)

from meshnode.crypto.tls import dialler_context
from meshnode.engine.ring_socket import RingSocket
from meshnode.engine.worker_messages import Turning
from meshnode.errors import RingBroken
from meshnode.types.ids import SessionId
from meshnode.wire.failures import Failed
from meshnode.wire.ring_messages import Lap

pytestmark = pytest.mark.processes


def test_a_link_that_ends_breaks_the_rings_that_go_by_it_on_both_sides_and_no_others(workers):
    first, second, third = workers
    broken = join([(first, "a"), (second, "a"), (third, "a")])
    also = join([(first, "b"), (second, "b")])
    whole = join([(third, "c"), (first, "c")])
    (link,) = [link for link in first.rings._links if link.key and len(link.sessions) == 2]
    link.socket.socket.shutdown(socket.SHUT_RDWR)
    touched = [(first, broken[0]), (second, broken[1]), (first, also[0]), (second, also[1])]
    turn(workers, lambda: all(is_broken(worker, exchange) for worker, exchange in touched))
    assert not third.failures(broken[2]), "its own links are whole, and its neighbours have only left"
    third.rings.hand_on(SessionId("c"), 5, 6, ROW)
    turn(workers, lambda: passed(first, "c"))
    assert not third.failures(whole[0])
    assert not first.failures(whole[1])
    for worker in workers:
        worker.rings.hand_on(SessionId("a"), 7, 8, ROW)  # nothing is sent
    join([(first, "a"), (second, "a"), (third, "a")])


def test_a_link_that_ends_before_the_session_enters_leaves_it_no_place(workers):
    worker, second, _ = workers
    Neighbour.dialled(worker.door("a")).close()
    turn([worker], lambda: worker.rings._links)
    turn([worker], lambda: not worker.rings._links)
    exchange = worker.enter("a", second.door("a"))
    assert is_broken(worker, exchange, why="the session has no place in a ring here")
    worker.door("a")
    assert not is_broken(worker, worker.enter("a", second.door("a")))
    twice = worker.enter("a", second.door("a"))
    assert is_broken(worker, twice, why="no place"), "it has entered one"


def test_who_leaves_is_missed_by_nobody(workers):
    first, second, third = workers
    exchanges = join([(first, "a"), (second, "a"), (third, "a")])
    first.rings.leave(SessionId("a"))
    turn(workers, lambda: second.rings._members[SessionId("a")].before is None)
    second.rings.hand_on(SessionId("a"), 1, 0, ROW)
    turn(workers, lambda: third.laps)
    third.rings.hand_on(SessionId("a"), 2, 1, ROW)  # to the first, which has left
    first.rings.tell(SessionId("a"), Turning())
    join([(second, "b"), (first, "b"), (third, "b")])
    for worker, exchange in zip(workers, exchanges, strict=True):
        assert not any(isinstance(message, Failed) for message in worker.said(exchange))
    assert first.laps == []
    assert Turning() not in first.said(exchanges[0])


def test_all_who_wait_for_a_link_that_breaks_at_once_hear_of_it(workers, credentials):
    worker, door = workers[0], Door(credentials)
    for name in "abcd":
        worker.door(name)
    exchanges = [worker.enter(name, door.ring_door()) for name in "abcd"]
    behind = door.answer()
    turn([], lambda: behind.look() and behind.heard)
    door.close()  # all but the first are dialled for once more
    behind.link.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    behind.close()  # by a reset, which the next message meets
    turn([worker], lambda: all(is_broken(worker, each) for each in exchanges))


def test_a_row_too_long_for_a_link_breaks_one_ring_only(workers):
    first, second, _ = workers
    (exchange, _), (other, _) = (join([(first, name), (second, name)]) for name in "ab")
    first.rings.hand_on(SessionId("a"), 1, 0, bytes(2 * 40_000))
    assert is_broken(first, exchange, why="bytes")
    first.rings.hand_on(SessionId("b"), 1, 0, bytes(2 * 32_768))
    turn(workers, lambda: passed(second, "b"))
    assert not first.failures(other)


def test_a_neighbour_that_takes_nothing_is_given_up_and_one_that_is_slow_gets_all(workers):
    first, second, third = workers
    row = bytes(2 * 32_000)
    slow, _ = join([(first, "a"), (second, "a")])
    count = 0
    while not any(link.is_full for link in first.rings._links):  # the connection takes no more
        first.rings.hand_on(SessionId("a"), count, count, row)
        count += 1
    for _ in range(10):
        first.rings.hand_on(SessionId("a"), count, count, row)
        count += 1
    turn(workers, lambda: len(second.laps) == count)
    assert passed(second, "a") == [(number, number, row) for number in range(count)]
    dead, _ = join([(first, "b"), (third, "b")])
    for number in range(500):  # 32 MB; nothing here waits
        first.rings.hand_on(SessionId("b"), number, number, row)
    assert is_broken(first, dead, why="bytes untaken")
    assert not first.failures(slow)
    turn(workers, lambda: not any(third.rings._members))


def pair(credentials):
    """Return two ends of a link whose connection has little room."""
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    found = []
    accepting = threading.Thread(target=lambda: found.append(credentials.context.wrap_socket(theirs, server_side=True)))
    accepting.start()
    dialled = dialler_context().wrap_socket(ours)
    accepting.join()
    for end in (dialled, *found):
        end.setblocking(False)
    return RingSocket(dialled), RingSocket(*found)


LAPS = st.tuples(
    st.integers(0, 99), st.integers(-(1 << 63), (1 << 64) - 1), st.integers(0, 1 << 20), st.integers(0, 65_000)
)


@settings(max_examples=15, deadline=None)
@given(laps=st.lists(LAPS, max_size=30), often=st.integers(1, 12))
def test_laps_arrive_whole_and_in_order_however_little_room_there_is(credentials, laps, often):
    sender, receiver = pair(credentials)
    sent = [(Lap(*numbers), bytes([count % 251]) * count) for *numbers, count in laps]
    heard = []
    for number, (lap, body) in enumerate(sent):
        sender.send(lap, body)
        if number % often == 0:
            heard += [(each.message, each.body) for each in receiver.receive()]
    while sender.has_unsent or len(heard) < len(sent):
        sender.flush()
        heard += [(each.message, each.body) for each in receiver.receive()]
    assert heard == sent
    sender.close()
    with pytest.raises(RingBroken):
        list(receiver.receive())
    receiver.close()
