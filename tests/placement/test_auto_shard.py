"""Managers of one mesh, on virtual time: shards spread from where a person put them, come back after losses, and stay in peace."""

import pytest
import trio
from support.placement_mesh import BLOCK, COUNT, HOUR, open_mesh

from meshnode.errors import RequestError, SourceUnavailable, Unavailable
from meshnode.placement.ledger import open_ledger
from meshnode.placement.models import Segment
from meshnode.placement.ports import Entrusted
from meshnode.types.blocks import BlockRange
from meshnode.types.peers import Offer


async def test_what_a_person_adds_on_one_node_spreads_and_then_there_is_peace(autojump_clock):
    async with open_mesh() as mesh:
        for name in "abcde":
            await mesh.add(name, gib=1)
        mesh.nodes["a"].put("m")
        await trio.sleep(3 * HOUR)
        assert set(mesh.copies("m")) == {2}
        moved = len(mesh.asked())
        await trio.sleep(4 * HOUR)
        assert len(mesh.asked()) == moved
        assert {model for node in mesh.alive() for model in node.hosted.value} == {"m"}
        assert all(
            sum(len(blocks) for blocks in node.held.values()) * BLOCK <= 1 << 30
            for node in mesh.alive()
            if node.peer != "a"
        )


async def test_a_node_that_gives_no_room_fetches_nothing_and_tells_what_it_is_asked_for(autojump_clock):
    async with open_mesh() as mesh:
        holder = await mesh.add("a")
        helper = await mesh.add("b", gib=0)
        holder.put("m")
        for _ in range(20):
            helper.demand.note("m")
        await trio.sleep(HOUR)
        assert helper.asked == []
        assert helper.room.value.budget == 0
        assert [model for model, _ in helper.room.value.demand] == ["m"]


async def test_no_more_room_is_given_than_the_memory_can_serve_and_what_is_loaded_already_stays(autojump_clock):
    async with open_mesh() as mesh:
        node = await mesh.add("a", gib=8, memory=1 << 30)
        await trio.sleep(HOUR)
        assert node.room.value.budget == 3 << 28  # a quarter is left to caches
        holder = await mesh.add("b")
        holder.put("m")
        for _ in range(20):
            holder.demand.note("m")
        await trio.sleep(3 * HOUR)
        held = len(node.held["m"]) * BLOCK
        assert 0 < held <= 3 << 28
        node.in_memory, node.memory = {"m"}, held  # other programs have taken the rest
        await trio.sleep(3 * HOUR)
        assert node.room.value.budget == held
        assert not [each for each in node.asked if each[0] == "drop"]


async def test_what_is_on_its_way_is_not_free_whoever_fetches_it(autojump_clock):
    async with open_mesh() as mesh:
        (await mesh.add("a")).put("m")
        node = await mesh.add("b", gib=4, stuck=True)
        await trio.sleep(600)
        told = node.room.value
        coming = sum(len(blocks) for _, blocks in told.fetching) * BLOCK
        assert told.coming == coming > 0
        assert Offer("b", 1, 0.0, "1", (), room=told).room_bytes == (4 << 30) - coming
        node.free, node.awaited = 8 << 30, 6 << 30
        await trio.sleep(600)
        assert node.room.value.budget == int(0.9 * (2 << 30))
        node.awaited = 9 << 30  # more than is there
        await trio.sleep(600)
        assert node.room.value.budget == 0


async def test_a_loss_is_made_good_by_others_and_who_comes_back_counts_again(autojump_clock):
    async with open_mesh() as mesh:
        for name in "abcdef":
            await mesh.add(name, gib=4)
        mesh.nodes["a"].put("m")
        await trio.sleep(3 * HOUR)
        lost = next(name for name in "bcdef" if mesh.nodes[name].held)
        mesh.stop(lost)
        assert min(mesh.copies("m")) == 1
        for node in mesh.alive():
            node.nudge.set(1)
        await trio.sleep(HOUR)
        assert min(mesh.copies("m")) == 2
        moved = [each for each in mesh.asked() if each[0] == "acquire"]
        await mesh.start(lost)
        await trio.sleep(2 * HOUR)
        assert [each for each in mesh.asked() if each[0] == "acquire"] == moved
        assert min(mesh.copies("m")) >= 2


async def test_what_a_person_removed_is_not_fetched_back_until_one_adds_it(autojump_clock):
    async with open_mesh() as mesh:
        await mesh.add("a")
        mesh.nodes["a"].put("m")
        other = await mesh.add("b")
        await trio.sleep(2 * HOUR)
        assert other.held
        other.remove("m")
        fetched = len(other.asked)
        await trio.sleep(2 * HOUR)
        assert len(other.asked) == fetched
        mesh.stop("b")
        await mesh.start("b")
        await trio.sleep(2 * HOUR)
        assert len(other.asked) == fetched
        other.put("m", range(2))
        await trio.sleep(6 * HOUR)
        assert other.held["m"] == set(range(COUNT))


async def test_a_removal_that_a_full_disk_cannot_note_is_heeded_and_noted_when_there_is_room(autojump_clock):
    async with open_mesh() as mesh:
        (await mesh.add("a")).put("m")
        other = await mesh.add("b")
        await trio.sleep(2 * HOUR)
        other.store.is_full = True
        other.remove("m")
        fetched = len(other.asked)
        await trio.sleep(3 * HOUR)
        assert len(other.asked) == fetched
        assert other.wishes.value.wishes, "the manager looks on"
        other.store.is_full = False
        await trio.sleep(HOUR)
        mesh.stop("b")
        await mesh.start("b")
        await trio.sleep(3 * HOUR)
        assert len(other.asked) == fetched
        assert (await open_ledger(other.store)).own_accord() == frozenset()


async def test_nothing_is_fetched_that_is_still_being_verified_by_anybody(autojump_clock):
    async with open_mesh() as mesh:
        (await mesh.add("a")).put("m")
        other = await mesh.add("b", verifying={"m": set(range(COUNT))})
        await mesh.add("c")
        await trio.sleep(HOUR)
        assert mesh.asked() == []
        other.verifying.clear()  # it was damaged
        await trio.sleep(2 * HOUR)
        assert set(mesh.copies("m")) == {2}


async def test_what_is_set_aside_has_not_been_removed_by_anybody(autojump_clock):
    async with open_mesh() as mesh:
        (await mesh.add("a")).put("m")
        other = await mesh.add("b")
        await trio.sleep(2 * HOUR)
        other.unverified.add("m")  # its file was damaged
        other.remove("m")
        await trio.sleep(3 * HOUR)
        assert other.held == {"m": set(range(COUNT))}


async def test_only_what_was_fetched_unasked_is_let_go_and_not_while_sessions_run_and_one_copy_stays(autojump_clock):
    async with open_mesh() as mesh:
        for name in "abcde":
            await mesh.add(name, gib=1.7)
        asker = await mesh.add("f", gib=0)
        for _ in range(400):
            asker.demand.note("m")
        mesh.nodes["a"].put("m")
        await trio.sleep(2 * HOUR)
        assert set(mesh.copies("m")) == {3}
        mesh.stop("f")
        new = mesh.nodes["a"]
        new.remove("m")  # now nobody has asked for it, nor asks
        new.put("wanted")
        for node in mesh.alive():
            node.busy, node.free = True, 0  # other programs have filled every disk: whatever the luck, all need room
        await trio.sleep(HOUR)
        assert not any(each[0] == "drop" for each in mesh.asked())
        for node in mesh.alive():
            node.busy = False
        await trio.sleep(2 * HOUR)
        assert any(each[:2] == ("drop", "m") for each in mesh.asked())
        assert min(mesh.copies("m")) == 1
        assert new.held == {"wanted": set(range(COUNT))}


async def test_what_a_person_asks_for_when_it_is_here_already_stays(autojump_clock):
    async with open_mesh() as mesh:
        other, asked = await mesh.add("a", gib=4), await mesh.add("b", gib=4)
        other.put("m")
        await trio.sleep(2 * HOUR)
        assert len(asked.held["m"]) == COUNT
        asked.wanted.add("m")
        mesh.stop("b")
        await mesh.start("b")
        for name in "cd":
            (await mesh.add(name, gib=4)).put("m")  # more copies than anybody needs
        other.put("wanted")
        asked.free = 0  # and no room for all of them
        await trio.sleep(4 * HOUR)
        assert asked.held["m"] == set(range(COUNT))
        assert asked.room.value.pinned == ("m",)


async def test_what_cannot_be_fetched_is_tried_again_later_and_not_at_once(autojump_clock):
    async with open_mesh() as mesh:
        await mesh.add("a")
        mesh.nodes["a"].put("m")
        other = await mesh.add("b", fails=True)
        await trio.sleep(1700)
        tries = len(other.asked)
        assert len(set(other.asked)) == tries
        assert other.held == {}
        other.fails = False
        await trio.sleep(3 * HOUR)
        assert other.held == {"m": set(range(COUNT))}


async def test_no_more_is_fetched_than_the_disk_has_room_for(autojump_clock):
    async with open_mesh() as mesh:
        await mesh.add("a")
        mesh.nodes["a"].put("m")
        other = await mesh.add("b", gib=100, free=5 * BLOCK)
        await trio.sleep(3 * HOUR)
        assert 0 < len(other.held["m"]) <= 4


async def test_the_wishlist_follows_what_is_added_and_removed_and_says_when_it_was_made(autojump_clock):
    async with open_mesh() as mesh:
        holder = await mesh.add("a", gib=0)
        await trio.sleep(100)
        for change, names in ((holder.put, ["m"]), (holder.remove, [])):
            change("m")
            changed = trio.current_time()
            await trio.sleep(5)
            assert [wish.name for wish in holder.wishes.value.wishes] == names
            assert changed <= holder.wishes.value.made < trio.current_time()


async def test_the_wishlist_says_what_is_lacking_and_why(autojump_clock):
    async with open_mesh() as mesh:
        holder = await mesh.add("a", gib=0)
        holder.put("m", range(8))
        holder.put("idle", range(COUNT))
        await trio.sleep(HOUR)
        rows = {wish.name: wish for wish in holder.wishes.value.wishes}
        assert rows["m"].status == "unreachable"
        assert "4 of 8 parts are held by nobody who is here" in rows["m"].reasons
        assert rows["idle"].status == "hosting"
        assert rows["idle"].held_percent == 100
        for _ in range(5):
            await mesh.add(f"x{_}", gib=0)
        await trio.sleep(HOUR)
        seen = {wish.name: wish for wish in mesh.nodes["x1"].wishes.value.wishes}
        assert (seen["idle"].status, seen["idle"].copies, seen["idle"].target) == (
            "serveable",
            1,
            1,
        )  # no room for a second
        assert "this node has no room for a part of it" in seen["idle"].reasons
        await mesh.add("roomy", gib=4)
        await trio.sleep(3 * HOUR)
        seen = {wish.name: wish for wish in mesh.nodes["x1"].wishes.value.wishes}
        assert (seen["idle"].copies, seen["idle"].target) == (2, 2)
        for _ in range(3):
            mesh.nodes["x1"].demand.note("other")
        mesh.nodes["x0"].put("other")
        mesh.nodes["roomy"].put("other")
        await trio.sleep(HOUR)
        rows = [wish for node in mesh.alive() for wish in node.wishes.value.wishes]
        assert all(wish.reasons for wish in rows)
        assert "2 copies of its rarest part are enough" in {reason for wish in rows for reason in wish.reasons}


@pytest.mark.parametrize(
    "changes",
    [
        {"budget": -1},
        {"coming": -1},
        {"uptime": float("nan")},
        {"demand": (("m", float("inf")),)},
        {"demand": (("m", -1.0),)},
    ],
)
def test_a_room_that_cannot_be_is_no_room(changes):
    from meshnode.types.peers import Room

    with pytest.raises(ValueError, match="a budget of"):
        Room(**changes)


def share(first, end):
    return Entrusted("m", BlockRange(first, end), COUNT, frozenset({"made"}), (end - first) * BLOCK)


async def test_a_share_made_for_somebody_is_held_of_its_own_accord(autojump_clock):
    async with open_mesh() as mesh:
        giver, helper = await mesh.add("a"), await mesh.add("b", gib=4)

        async def announce():
            await trio.sleep(3)  # gossip takes a moment
            giver.put("m")

        mesh.nursery.start_soon(announce)
        await helper.entrusted.ask(share(8, 16))
        assert helper.held["m"] == set(range(8, 16))
        assert set(helper.room_left) == {4 << 30}
        assert helper.hosted.value == {"m"}
        assert helper.room.value.pinned == (), "nobody asked for it here, so it may be let go again"
        with pytest.raises(RequestError, match="no share"):
            await helper.entrusted.ask(share(0, 1))
        helper.free = 9 * BLOCK  # one, and the eight that are held
        await helper.entrusted.ask(share(0, 8))
        assert helper.room_left[-1] == 8 * BLOCK + int(0.9 * BLOCK), "what lies here already is room that it has taken"


@pytest.mark.parametrize(("gib", "why"), [(0, "gives no room"), (4, "has removed")])
async def test_nobody_is_made_to_hold_what_its_owner_does_not_want(autojump_clock, gib, why):
    async with open_mesh() as mesh:
        giver, helper = await mesh.add("a"), await mesh.add("b", gib=gib)
        giver.put("m")
        if gib:
            helper.put("m")
            await trio.sleep(HOUR)
            helper.held.pop("m")
            await trio.sleep(HOUR)
        with pytest.raises(Unavailable, match=why):
            await helper.entrusted.ask(share(0, 16))
        assert not helper.held


async def test_a_share_that_cannot_be_had_is_not_held(autojump_clock):
    async with open_mesh() as mesh:
        helper = await mesh.add("b", gib=4)
        with pytest.raises(SourceUnavailable):
            await helper.entrusted.ask(share(8, 16))
        ledger = await open_ledger(helper.store)
        assert ledger.own_accord() == frozenset()


@pytest.mark.parametrize(("unable", "hours"), [({"fails": True}, 5), ({"stuck": True}, 12)], ids=str)
async def test_who_cannot_fetch_leaves_it_to_others_after_a_while(autojump_clock, unable, hours):
    async with open_mesh() as mesh:
        (await mesh.add("a")).put("m")
        for name in "bc":
            await mesh.add(name, **unable)
        for name in "de":
            await mesh.add(name)
        await trio.sleep(hours * HOUR)  # two hours for each attempt, and both may have a turn or two before the others
        assert min(mesh.copies("m")) == 2
        assert mesh.nodes["b"].wishes.value.wishes[0].copies >= 2, "a stuck fetch stops no look"


async def test_who_does_not_want_a_model_leaves_it_to_others_after_a_while(autojump_clock):
    async with open_mesh() as mesh:
        for name in "abcdef":
            await mesh.add(name, gib=4)
        mesh.nodes["a"].put("m")
        await trio.sleep(3 * HOUR)
        max((mesh.nodes[name] for name in "bcdef"), key=lambda node: len(node.held.get("m", ()))).remove("m")
        await trio.sleep(3 * HOUR)
        assert min(mesh.copies("m")) == 2


async def test_a_model_that_people_have_cut_elsewhere_is_whole_and_gets_its_copies(autojump_clock):
    async with open_mesh() as mesh:
        for name, blocks in {"a": range(5), "b": range(5, 11), "c": range(11, COUNT)}.items():
            (await mesh.add(name, gib=0)).put("m", blocks)
        for name in "def":
            await mesh.add(name)
        await trio.sleep(60)
        (wish,) = mesh.nodes["d"].wishes.value.wishes
        assert (wish.status, wish.copies) != ("unreachable", 0)
        await trio.sleep(4 * HOUR)
        assert min(mesh.copies("m")) == 2


async def test_what_is_fetched_around_blocks_that_a_person_put_here_is_theirs(autojump_clock):
    async with open_mesh() as mesh:
        (await mesh.add("a")).put("m")
        mesh.nodes["a"].busy = True
        other = await mesh.add("b")
        other.put("m", range(5, 6))
        await trio.sleep(HOUR)
        assert other.held["m"] == set(range(COUNT))
        assert Segment("m", 2) not in (await open_ledger(other.store)).own_accord()
        assert other.room.value.pinned == ("m",)


async def test_what_nobody_has_any_more_is_fetched_once_from_where_it_came_from_by_who_knows(autojump_clock):
    async with open_mesh() as mesh:
        knows = await mesh.add("a", origins={"m"})
        knows.put("m", range(8))
        for name in "bcd":
            await mesh.add(name, origins={"other"})
        mesh.nodes["b"].put("m", range(8, COUNT))
        await trio.sleep(20)
        mesh.stop("b")
        await trio.sleep(1700)
        assert not any(what == "outside" for what, *_ in mesh.asked()), "who had it may come back"
        await trio.sleep(2 * HOUR)
        assert min(mesh.copies("m")) == 2
        asked = [blocks for what, model, blocks in mesh.asked() if (what, model) == ("outside", "m")]
        assert sorted(asked) == ["10:12", "12:14", "14:16", "8:10"], "the others have it from the one who fetched it"


async def test_where_it_came_from_is_asked_again_later_when_it_does_not_answer(autojump_clock):
    async with open_mesh() as mesh:
        node = await mesh.add("a", origins={"m"}, fails=True)
        node.put("m", range(14))
        await trio.sleep(2 * HOUR)
        assert 2 <= node.asked.count(("outside", "m", "14:16")) <= 4
        assert [wish.status for wish in node.wishes.value.wishes] == ["unreachable"]
        node.fails = False
        await trio.sleep(2 * HOUR)
        assert set(mesh.copies("m")) == {1}
