"""What members know of each other is minutes old, and some of it never comes: no last copy goes, and there is peace all the same."""

from random import Random

import pytest
import trio
from support.placement_mesh import BLOCK, COUNT, HOUR, Gossip, open_mesh

from meshnode.placement.ledger import open_ledger
from meshnode.placement.models import Segment
from meshnode.placement.ranking import luck


async def hold_unasked(node, model):
    """A node holds all of a model of its own accord."""
    node.put(model)
    ledger = await open_ledger(node.store)
    for index in range(8):
        await ledger.add(Segment(model, index))


def ask(node, model):
    for _ in range(400):
        node.demand.note(model)


async def test_two_who_both_rely_on_a_copy_that_has_gone_keep_theirs(autojump_clock):
    """Gossip alone says that the third stays; it has gone a moment ago."""
    async with open_mesh(Gossip(Random(1), every=5.0, latest=0.0, lost=0.0)) as mesh:
        for name in "abc":
            node = await mesh.add(name, gib=COUNT * BLOCK / (1 << 30))  # no room is left, so all but one copy are to go
            await hold_unasked(node, "m")
        await trio.sleep(20)
        mesh.stop(max("abc", key=lambda name: luck(Segment("m", -1), name)))
        await trio.sleep(HOUR)
        assert mesh.lost == []
        assert min(mesh.copies("m")) == 1


async def test_who_cannot_be_asked_does_not_count(autojump_clock):
    async with open_mesh(Gossip(Random(1), every=5.0, latest=0.0, lost=0.0, silence=10 * HOUR)) as mesh:
        for name in "ab":
            await hold_unasked(await mesh.add(name, gib=COUNT * BLOCK / (1 << 30)), "m")
        await trio.sleep(20)
        mesh.stop("b")
        await trio.sleep(HOUR)
        assert mesh.copies("m") == [1] * COUNT


@pytest.mark.parametrize("seed", range(2))
async def test_a_mesh_of_late_gossip_loses_nothing_and_comes_to_rest(autojump_clock, seed):
    async with open_mesh(Gossip(Random(seed))) as mesh:
        for name in "abcde":
            await mesh.add(name, gib=1.7)
        first, asker = mesh.nodes["a"], await mesh.add("f", gib=0)
        first.put("m")
        ask(asker, "m")
        await trio.sleep(2 * HOUR)
        assert min(mesh.copies("m")) >= 3
        first.remove("m")  # nobody asks for it any more, and another is to take its place
        mesh.stop("f")
        first.put("n")
        ask(first, "n")
        await trio.sleep(HOUR)
        mesh.stop("b")
        ask(first, "n")
        await trio.sleep(2 * HOUR)
        assert mesh.lost == []
        assert min(mesh.copies("m")) >= 1
        assert min(mesh.copies("n")) >= 2
        assert any(what == "drop" for what, *_ in mesh.asked())
        for node in mesh.nodes.values():
            gone = [node.asked.index(each) for each in node.asked if each[0] == "drop"]
            assert not any(("acquire", *node.asked[at][1:]) in node.asked[at:] for at in gone), (
                "nothing is fetched again"
            )
        fetched = [each for each in mesh.asked() if each[0] == "acquire"]
        await mesh.start("b")  # its copies count again: some may go, and none are to come
        await trio.sleep(HOUR)
        assert [each for each in mesh.asked() if each[0] == "acquire"] == fetched
        assert mesh.lost == []
