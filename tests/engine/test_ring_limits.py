"""What a worker bears of coordinators that name any doors, of neighbours without end, and of a system that has nothing left."""

import pytest
from support.ring_workers import Door, Neighbour, RingWorker, is_broken, place_of, retire, turn

from meshnode.errors import RingBroken
from meshnode.types.ids import SessionId
from meshnode.wire.ring_messages import RingDoor

pytestmark = pytest.mark.processes


def test_only_so_many_links_are_taken_in(workers, monkeypatch):
    monkeypatch.setattr("meshnode.engine.rings._MOST_LINKS", 2)
    worker = workers[0]
    neighbours = []
    for name in "abc":
        neighbours.append(Neighbour.dialled(worker.door(name)))
        turn([worker], lambda: neighbours[-1].heard or not neighbours[-1].look())
    assert [each.look() for each in neighbours] == [True, True, False]
    neighbours[0].close()
    turn([worker], lambda: sum(link.key is None for link in worker.rings._links) == 1)
    neighbours.append(Neighbour.dialled(worker.door("d")))
    turn([worker], lambda: neighbours[-1].look() and neighbours[-1].heard)
    for each in neighbours:
        each.close()


def test_a_link_that_carries_nothing_makes_room(workers, monkeypatch):
    monkeypatch.setattr("meshnode.engine.rings._MOST_LINKS", 1)
    worker = workers[0]
    idle = Neighbour.dialled(worker.door("a"))
    turn([worker], lambda: idle.look() and idle.heard)
    worker.rings.leave(SessionId("a"))
    comes = Neighbour.dialled(worker.door("b"))
    turn([worker], lambda: comes.look() and comes.heard)
    assert not idle.look()
    idle.close()
    comes.close()


def test_only_so_many_links_are_dialled_and_one_that_carries_nothing_makes_room(workers, credentials, monkeypatch):
    """A coordinator may name as many doors as it likes, each with another list of hosts."""
    monkeypatch.setattr("meshnode.engine.rings._MOST_LINKS", 2)
    worker, doors, neighbours, exchanges = workers[0], [Door(credentials) for _ in "abc"], [], []
    for name, door in zip("abc", doors, strict=True):
        worker.door(name)
        exchanges.append(worker.enter(name, door.ring_door()))
        neighbours.append(door.answer())
        turn([worker], lambda: not worker.rings._dialling)
    assert [is_broken(worker, each, why="2 links to other workers are in use") for each in exchanges] == [False] * 2 + [
        True
    ]
    assert [each.look() for each in neighbours] == [True, True, False]
    worker.rings.leave(SessionId("a"))
    worker.door("d")
    comes = worker.enter("d", doors[2].ring_door())
    neighbours.append(doors[2].answer())
    turn([worker], lambda: worker.rings._members[SessionId("d")].behind)
    assert not worker.failures(comes)
    assert [each.look() for each in neighbours] == [False, True, False, True]
    for each in (*neighbours, *doors):
        each.close()


def test_only_so_many_doors_are_tried_at_once(workers, credentials, monkeypatch):
    """Each costs a thread for some seconds, and a coordinator may name any."""
    monkeypatch.setattr("meshnode.engine.rings._MOST_DIALLED", 1)
    worker, door = workers[0], Door(credentials)
    for name in "abc":
        worker.door(name)
    first, same = (worker.enter(name, door.ring_door()) for name in "ab")
    other = worker.enter("c", RingDoor(("127.0.0.1",), 9, bytes(32), bytes(32)))
    assert is_broken(worker, other, why="1 doors are being tried already")
    neighbour = door.answer()
    turn([worker], lambda: worker.rings._members[SessionId("b")].behind is not None)
    assert not is_broken(worker, first)
    assert not is_broken(worker, same)
    neighbour.close()
    door.close()


@pytest.mark.parametrize("failing", ["listener_context", "_begin"])
def test_a_system_that_has_nothing_left_costs_the_ring_and_not_the_worker(credentials, monkeypatch, failing):
    """No room for the certificate's file, no descriptor, no thread."""

    def fails(*_):
        raise OSError(28, "No space left on device") if failing == "listener_context" else RuntimeError("no thread")

    worker = RingWorker(place_of(credentials))
    with monkeypatch.context() as patch:
        patch.setattr(f"meshnode.engine.ring_doors.{failing}", fails)
        (failed,) = worker.said(worker.expect("a"))
        assert failed.code == RingBroken.code
    assert worker.door("a")
    monkeypatch.setattr("meshnode.engine.ring_doors._begin", lambda *_: fails())
    if failing == "_begin":
        assert is_broken(worker, worker.enter("a", RingDoor(("127.0.0.1",), 9, bytes(32), bytes(32))), why="no thread")
    retire(worker)
