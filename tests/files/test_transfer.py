"""One transfer on virtual time: whoever has nothing left to do overtakes those who are slow."""

import shutil
from contextlib import asynccontextmanager
from types import SimpleNamespace

import attrs
import pytest
import trio
from blake3 import blake3

from meshnode.errors import FileError, PeerUnreachable
from meshnode.files import importing
from meshnode.files.part_file import open_part
from meshnode.files.shard_file import shard_file_name
from meshnode.files.transfer import ShardTransfer
from meshnode.flow.lanes import Lanes
from meshnode.types.manifest import CHUNK_BYTES, ShardDescriptor, ShardKind

COUNT = 12
WHOLE = b"".join(bytes([number]) * CHUNK_BYTES for number in range(COUNT))[:-100]


def chunk(number):
    return WHOLE[number * CHUNK_BYTES : (number + 1) * CHUNK_BYTES]


def shard_of(block, whole):
    chunks = [whole[at : at + CHUNK_BYTES] for at in range(0, len(whole), CHUNK_BYTES)]
    hashes = tuple(blake3(each).hexdigest() for each in chunks)
    return ShardDescriptor(blake3(whole).hexdigest(), ShardKind.BLOCK, block, len(whole), hashes, ())


SHARD = shard_of(0, WHOLE)


class InlineLanes(Lanes):
    """Runs blocking work at once: a thread would not know of virtual time."""

    async def run(self, lane, function, *args, abandon_on_cancel=False):
        await trio.lowlevel.checkpoint()
        return function(*args)


@attrs.define(eq=False)
class Peers:
    """Each gives a chunk in so many seconds (none cannot be reached), of the blocks it has by then: by default of the only one."""

    paces: dict
    has: dict = attrs.field(factory=dict)  # by block who has it since when
    wholes: dict = attrs.field(factory=lambda: {SHARD.id: WHOLE})
    given: list = attrs.field(factory=list)
    lost: float = 0.0  # chunks of which the rest was not wanted any more
    asked: int = 0
    most_asked: int = 0  # at once

    def holders(self, model, block, *, embedding=False, head=False):
        has = self.has.get(block, dict.fromkeys(self.paces, 0.0))
        return frozenset(peer for peer, since in has.items() if trio.current_time() >= since)

    @asynccontextmanager
    async def line(self, peer):
        await trio.lowlevel.checkpoint()
        if self.paces[peer] is None:
            raise PeerUnreachable("away")

        async def fetch(shard, first, count, take):
            for number in range(first, first + count):
                begun = trio.current_time()
                try:
                    await trio.sleep(self.paces[peer])
                except trio.Cancelled:
                    self.lost += (trio.current_time() - begun) / self.paces[peer]
                    raise
                take(number, self.wholes[shard][number * CHUNK_BYTES : (number + 1) * CHUNK_BYTES])
                self.given.append((peer, number))

        self.asked += 1
        self.most_asked = max(self.most_asked, self.asked)
        try:
            yield SimpleNamespace(fetch=fetch)
        finally:
            self.asked -= 1

    def accuse(self, peer, what):
        raise AssertionError(what)


@pytest.mark.parametrize(
    ("paces", "within", "slow"),
    [
        ({"a": 250.0, "b": 0.5}, 2 * 3 + 8 * 0.5, 0),  # one is asked for eight, the other for four
        ({"a": 2.0, "b": 0.5}, 2 * 3 + 8 * 0.5, 3),
        ({"a": 250.0, "b": 0.5, "c": 0.5, "d": 250.0}, 3 * 3 + 8 * 0.5, 0),
        # It has a fifth place, and at the end waits until it may race those who have raced others.
        (dict.fromkeys("abcd", 250.0) | {"e": 0.5}, 3 * 3 + 12 * 0.5, 0),
    ],
)
async def test_whoever_is_slow_is_overtaken_at_the_end(tmp_path, autojump_clock, paces, within, slow):
    staging, peers = tmp_path / "staging", Peers(paces)
    staging.mkdir()
    manifest = SimpleNamespace(id="model", name="a model")
    transfer = ShardTransfer(manifest, [SHARD], peers, tmp_path, InlineLanes(), lambda done, total: None)
    await transfer.run(staging)
    assert (staging / shard_file_name(SHARD.id)).read_bytes() == WHOLE
    assert trio.current_time() <= within
    assert len([number for peer, number in peers.given if peer == "a"]) <= slow
    assert len(peers.given) + peers.lost <= COUNT + list(paces.values()).count(paces["a"])  # one of each who is slow


async def fetched(tmp_path, shards, peers, model="model"):
    staging = tmp_path / model
    staging.mkdir()
    manifest = SimpleNamespace(id=model, name="a model")
    begun = trio.current_time()
    await ShardTransfer(manifest, shards, peers, tmp_path, InlineLanes(), lambda done, total: None).run(staging)
    for shard in shards:
        assert (staging / shard_file_name(shard.id)).read_bytes() == peers.wholes[shard.id]
    return trio.current_time() - begun


@pytest.mark.parametrize(("pace", "most"), [(0.2, 4), (250.0, 8)])
async def test_few_are_asked_at_once_and_some_more_beside_those_who_are_slow(tmp_path, autojump_clock, pace, most):
    peers = Peers(dict.fromkeys("abcdefghijkl", pace))
    await fetched(tmp_path, [SHARD], peers)
    assert peers.most_asked == most


SMALL = [shard_of(block, bytes([block])) for block in range(1, 7)]


async def test_of_more_than_may_be_asked_at_once_those_who_alone_hold_something_come_first(tmp_path, autojump_clock):
    paces = dict.fromkeys("abcdeyz", 1.0)
    has = {0: dict.fromkeys("abcde", 0), 1: {"z": 0}, 2: {"y": 0}}
    peers = Peers(paces, has, {SHARD.id: WHOLE} | {shard.id: bytes([shard.block]) for shard in SMALL})
    await fetched(tmp_path, [SHARD, *SMALL[:2]], peers)
    assert {peer for peer, _ in peers.given[:4]} == {"a", "b", "y", "z"}


async def test_who_has_given_the_rarest_steps_back_for_somebody_who_alone_holds_something(tmp_path, autojump_clock):
    alone = {shard.block: {peer: 0} for shard, peer in zip(SMALL, "abcdyz", strict=True)}
    peers = Peers(
        dict.fromkeys("abcdyz", 1.0), alone, {SHARD.id: WHOLE} | {shard.id: bytes([shard.block]) for shard in SMALL}
    )
    await fetched(tmp_path, [SHARD, *SMALL], peers)
    assert [peer for peer, _ in sorted(peers.given[:4])] == ["a", "b", "c", "d"]
    assert {"y", "z"} < {peer for peer, _ in peers.given[4:8]}


async def test_who_gets_a_shard_later_or_joins_is_asked_too(tmp_path, autojump_clock):
    peers = Peers({"a": 10.0, "b": 0.5}, {0: {"a": 0, "b": 12.0}})
    assert await fetched(tmp_path, [SHARD], peers) < 12.0 + 5.0 + COUNT * 0.5 + 10.0
    assert [peer for peer, _ in peers.given].count("b") >= COUNT - 4


async def test_who_has_come_just_before_it_would_be_given_up_is_asked(tmp_path, autojump_clock):
    peers = Peers({"a": None, "b": 0.5}, {0: {"a": 0, "b": 2.0}})
    await fetched(tmp_path, [SHARD], peers)
    assert len(peers.given) == COUNT


async def test_two_models_that_have_a_shard_in_common_come_at_once(tmp_path, autojump_clock):
    peers = Peers(dict.fromkeys("ab", 1.0), wholes={SHARD.id: WHOLE} | {each.id: bytes([each.block]) for each in SMALL})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fetched, tmp_path, [SHARD, SMALL[0]], peers, "one")
        nursery.start_soon(fetched, tmp_path, [SHARD, *SMALL[1:]], peers, "another")
    assert list(tmp_path.glob("*.part")) == []


async def test_without_room_for_what_is_missing_nobody_is_asked(tmp_path, autojump_clock, monkeypatch):
    staging, peers = tmp_path / "staging", Peers({"a": 0.5})
    staging.mkdir()
    part = open_part(tmp_path, SHARD)
    for number in range(8):
        part.write(number, chunk(number))
    part.close()
    usage, missing = shutil.disk_usage(tmp_path), len(WHOLE) - 8 * CHUNK_BYTES

    def transfer(free):
        monkeypatch.setattr(importing.shutil, "disk_usage", lambda _: usage._replace(free=free))
        manifest = SimpleNamespace(id="model", name="a model")
        return ShardTransfer(manifest, [SHARD], peers, tmp_path, InlineLanes(), lambda done, total: None)

    with pytest.raises(FileError, match=r"needs 4 MB, and .* free some"):
        await transfer(missing + importing._SPARE_BYTES - 1).run(staging)
    assert peers.given == []
    await transfer(missing + importing._SPARE_BYTES).run(staging)
    assert (staging / shard_file_name(SHARD.id)).read_bytes() == WHOLE
    assert len(peers.given) == COUNT - 8
