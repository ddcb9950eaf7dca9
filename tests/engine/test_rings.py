"""Workers that connect to each other for their sessions, and what becomes of sessions when one lets go."""

import pytest
from support.ring_workers import ROW, Door, Neighbour, RingWorker, is_broken, join, passed, place_of, retire, turn

from meshnode.engine.ring_doors import RingDoors
from meshnode.engine.worker_messages import DoorOpened, RingEntered, Turning
from meshnode.errors import RingBroken
from meshnode.network.certificates import make_credentials
from meshnode.types.ids import SessionId
from meshnode.wire.ring_messages import Attach, Attached, Detach, Lap, RingDoor

pytestmark = pytest.mark.processes


def test_the_daemon_hears_that_the_ring_is_there_once_both_neighbours_are(workers, credentials):
    first, second, _ = workers
    doors = [worker.door("a") for worker in (first, second)]
    ahead = first.enter("a", doors[1])
    turn(workers, lambda: first.rings._links and second.rings._links)
    turn(workers, lambda: first.rings._members[SessionId("a")].is_attached)
    assert first.said(ahead) == [], "the worker before it has not come"
    behind = second.enter("a", doors[0])
    turn(workers, lambda: first.has_entered(ahead) and second.has_entered(behind))
    assert first.said(ahead) == second.said(behind) == [RingEntered()]


def test_the_daemon_does_not_hear_of_a_worker_behind_that_has_not_taken_the_session_in(workers, credentials):
    (worker, *_), door = workers, Door(credentials)
    before = Neighbour.dialled(worker.door("a"))
    exchange = worker.enter("a", door.ring_door())
    behind = door.answer()
    turn([worker], lambda: behind.look() and before.look() and behind.heard and before.heard)
    assert (before.heard, behind.heard) == ([Attached(0)], [Attach(0, bytes(32))])
    assert worker.said(exchange) == []
    behind.link.send(Attached(0))
    turn([worker], lambda: worker.said(exchange) == [RingEntered()])
    for each in (before, behind, door):
        each.close()
    turn([worker], lambda: is_broken(worker, exchange))


def test_sessions_that_go_the_same_way_share_a_link_which_ends_when_it_carries_none(workers, monkeypatch):
    dialled, dial = [], RingDoors.dial
    monkeypatch.setattr(RingDoors, "dial", lambda self, *door: (dialled.append(door), dial(self, *door)))
    first, second, _ = workers
    doors = [(first.door(name), second.door(name)) for name in "abc"]
    there = [first.enter(name, door) for name, (_, door) in zip("abc", doors, strict=True)]
    back = [second.enter(name, door) for name, (door, _) in zip("abc", doors, strict=True)]
    turn(workers, lambda: all(map(first.has_entered, there)) and all(map(second.has_entered, back)))
    for step, name in enumerate("cabbac"):
        first.rings.hand_on(SessionId(name), step, 40, ROW)
    turn(workers, lambda: len(second.laps) == 6)
    assert [session for session, _, _ in second.laps] == list("cabbac")
    assert first.said(there[0]) == [RingEntered(), Turning()], "rows pass, which the daemon hears once a second"
    for name in "abc":
        first.rings.leave(SessionId(name))
        second.rings.leave(SessionId(name))
    turn(workers, lambda: True)
    join([(first, "d"), (second, "d")])
    assert len(dialled) == 2, "a later session takes the links that are there"
    first.rings.close_unused()
    second.rings.close_unused()
    join([(first, "a"), (second, "a")])
    first.rings.hand_on(SessionId("d"), 1, 40, ROW)
    turn(workers, lambda: second.laps[6:])
    assert len(dialled) == 2, "those that a session goes by are in use"
    for worker in (first, second):
        worker.rings.leave(SessionId("a"))
        worker.rings.leave(SessionId("d"))
    for worker in (first, second):
        worker.rings.close_unused()
    turn(workers, lambda: not first.rings._links and not second.rings._links)
    join([(first, "a"), (second, "a")])
    assert len(dialled) == 4


def test_whoever_shows_a_token_a_second_time_is_not_taken_in(workers, credentials):
    worker, second, _ = workers
    door = worker.door("a")
    pair = [Neighbour.dialled(door), Neighbour.dialled(door)]
    turn([], lambda: worker.rings._doors._made.qsize() == 2)  # both before the main thread looks
    exchange = worker.enter("a", second.door("a"))
    turn(workers, lambda: all(each.look() for each in pair) and any(each.heard for each in pair))
    late = Neighbour.dialled(door)
    turn(workers, lambda: not late.look() and worker.has_entered(exchange))
    assert sorted(map(len, [each.heard for each in pair])) == [0, 1]
    for each in pair:
        each.link.send(Lap(0, 1 if each.heard else 2, 0), ROW)
    turn(workers, lambda: worker.laps)
    for each in (*pair, late):
        each.close()
    turn(workers, lambda: is_broken(worker, exchange))
    assert passed(worker, "a") == [(1, 0, ROW)]


def test_a_token_that_nobody_gave_harms_no_session_of_a_link_but_a_number_in_use_ends_it(workers):
    worker, second, _ = workers
    doors = {name: worker.door(name) for name in "abc"}
    exchanges = {name: worker.enter(name, second.door(name)) for name in "ab"}
    neighbour = Neighbour.dialled(doors["a"])
    neighbour.link.send(Attach(1, bytes(32)))
    neighbour.link.send(Lap(1, 9, 9), ROW)
    neighbour.link.send(Attach(2, doors["b"].token))
    neighbour.link.send(Lap(0, 1, 0), ROW)
    turn(workers, lambda: worker.laps and all(map(worker.has_entered, exchanges.values())))
    assert neighbour.look()
    assert neighbour.heard == [Attached(0), Attached(2)]
    assert [session for session, _, _ in worker.laps] == ["a"]
    neighbour.link.send(Attach(2, doors["c"].token))
    turn(workers, lambda: not neighbour.look())
    assert all(is_broken(worker, each, why="a number that is in use") for each in exchanges.values())
    again = worker.enter("b", second.door("b"))
    assert "no place in a ring" in worker.failures(again)[0].message
    neighbour.close()


@pytest.mark.parametrize("wrong", [(Lap(0, 1, 0), ROW), (Attach(4, bytes(32)), b""), (Detach(0), b"")])
def test_who_rows_are_handed_to_may_say_nothing_but_that_it_knows_the_session(workers, credentials, wrong):
    worker, door = workers[0], Door(credentials)
    elsewhere = join([(worker, "b"), (workers[1], "b")])
    worker.door("a")
    exchange = worker.enter("a", door.ring_door())
    behind = door.answer()
    behind.link.send(*wrong)
    turn(workers, lambda: not behind.look())
    assert is_broken(worker, exchange, why=f"{type(wrong[0]).__name__} from the worker that rows are handed to")
    assert worker.laps == []
    assert not worker.failures(elsewhere[0])
    for each in (behind, door):
        each.close()


def test_a_door_opened_anew_ends_the_old_ring_and_its_laps_and_its_token(workers):
    first, second, _ = workers
    old = first.door("a")
    neighbour = Neighbour.dialled(old)
    silent = first.enter("a", second.door("a"))
    turn([first], lambda: neighbour.look() and neighbour.heard == [Attached(0)])
    new = first.door("a")
    neighbour.link.send(Lap(0, 1, 0), ROW)
    neighbour.link.send(Attach(1, old.token))
    neighbour.link.send(Attach(2, new.token))
    neighbour.link.send(Lap(2, 4, 0), ROW)
    turn(workers, lambda: passed(first, "a"))
    assert passed(first, "a") == [(4, 0, ROW)]
    assert neighbour.look()
    assert neighbour.heard[1:] == [Attached(2)]
    exchange = first.enter("a", second.door("a"))
    turn(workers, lambda: first.has_entered(exchange))
    assert not first.failures(silent), "the session was to be entered anew"
    neighbour.close()
    turn(workers, lambda: is_broken(first, exchange))


def test_who_leaves_while_the_link_is_being_made_is_not_in_it(workers):
    first, second, _ = workers
    for name in "abc":
        first.door(name)
    left, stays, comes = [first.enter(name, second.door(name)) for name in "abc"]  # by the link that is being made
    first.rings.leave(SessionId("a"))
    turn(workers, lambda: second.rings._links and first.rings._links)
    turn(workers, lambda: all(first.rings._members[SessionId(name)].is_attached for name in "bc"))
    for step, name in enumerate("abc"):
        first.rings.hand_on(SessionId(name), step, 0, ROW)
    turn(workers, lambda: len(second.laps) == 2)
    assert [session for session, _, _ in second.laps] == ["b", "c"]
    assert first.said(left) == []
    assert first.said(stays) == first.said(comes) == [Turning()]
    assert second.rings._members[SessionId("a")].before is None


def test_sessions_whose_next_worker_cannot_be_reached_hear_why(workers, credentials):
    worker = workers[0]
    nobody, other = Door(credentials), Door(make_credentials(), presented=credentials)
    nobody.close()
    for name in "abcd":
        worker.door(name)
    port = nobody.ring_door().port
    closed = [worker.enter(name, nobody.ring_door()) for name in "ab"]
    named = worker.enter("c", RingDoor(("localhost",), port, credentials.fingerprint, bytes(32)))
    wrong = worker.enter("d", other.ring_door())
    other.answer().close()
    turn([worker], lambda: all(is_broken(worker, each) for each in (*closed, named, wrong)))
    for each, why in [(closed[0], "refused"), (closed[1], "refused"), (named, "IP"), (wrong, "certificate is not the")]:
        (failed,) = worker.failures(each)
        assert failed.message.startswith("the next worker cannot be reached: ")
        assert why in failed.message
    other.close()


def test_a_door_whose_token_is_none_is_refused_before_it_harms_a_link(workers):
    first, second, _ = workers
    join([(first, "a"), (second, "a")])
    first.door("b")
    opened = second.door("b")
    exchange = first.enter("b", RingDoor(opened.hosts, opened.port, opened.certificate, bytes(4000)))
    assert is_broken(first, exchange, why="token")
    first.rings.hand_on(SessionId("a"), 1, 0, ROW)
    turn(workers, lambda: second.laps)


def test_a_first_token_that_is_void_costs_its_own_session_and_none_that_waits_for_the_link(workers):
    """As that of a session that has ended meanwhile: the door sends away who shows it."""
    first, second, _ = workers
    doors = {name: second.door(name) for name in "abcd"}
    for name in "ab":
        doors[name] = RingDoor(doors[name].hosts, doors[name].port, doors[name].certificate, bytes(32))
    for name in doors:
        first.door(name)
    void, also, good, other = [first.enter(name, door) for name, door in doors.items()]
    turn(workers, lambda: all(first.rings._members[SessionId(name)].is_attached for name in "cd"))
    assert is_broken(first, void)
    assert is_broken(first, also)
    assert first.said(good) == first.said(other) == []
    first.rings.hand_on(SessionId("c"), 1, 0, ROW)
    turn(workers, lambda: passed(second, "c"))


def test_a_network_that_has_begun_anew_is_found_at_a_new_door_and_old_links_stay(workers, monkeypatch):
    first, second, _ = workers
    old = join([(first, "a"), (second, "a")])
    monkeypatch.setattr(second, "place", place_of(make_credentials()))
    join([(first, "b"), (second, "b")])
    for name in "ab":
        first.rings.hand_on(SessionId(name), 1, 0, ROW)
    turn(workers, lambda: passed(second, "a") and passed(second, "b"))
    assert not first.failures(old[0])


def test_a_door_that_cannot_be_opened_is_said_to_the_daemon(credentials):
    worker = RingWorker(place_of(credentials, ["192.0.2.1"]))
    (failed,) = worker.said(worker.expect("a"))
    assert failed.code == RingBroken.code
    assert "cannot listen on 192.0.2.1" in failed.message
    assert worker.failures(worker.enter("a", RingDoor((), 1, bytes(32), bytes(32))))
    worker.place = place_of(credentials)
    assert isinstance(worker.said(worker.expect("a"))[0], DoorOpened)
    retire(worker)
