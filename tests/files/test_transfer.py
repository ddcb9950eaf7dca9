"""One transfer on virtual time: whoever has nothing left to do overtakes those who are slow."""

import shutil
from contextlib import asynccontextmanager
from types import SimpleNamespace

import attrs
import pytest
import trio
from blake3 import blake3

from meshnode.errors import FileError
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


SHARD = ShardDescriptor(
    blake3(WHOLE).hexdigest(),
    ShardKind.BLOCK,
    0,
    len(WHOLE),
    tuple(blake3(chunk(number)).hexdigest() for number in range(COUNT)),
    (),
)


class InlineLanes(Lanes):
    """Runs blocking work at once: a thread would not know of virtual time."""

    async def run(self, lane, function, *args, abandon_on_cancel=False):
        await trio.lowlevel.checkpoint()
        return function(*args)


@attrs.define(eq=False)
class Peers:
    """Each gives a chunk in so many seconds."""

    paces: dict
    given: list = attrs.field(factory=list)
    lost: float = 0.0  # chunks of which the rest was not wanted any more

    def holders(self, model, block, *, embedding=False, head=False):
        return frozenset(self.paces)

    @asynccontextmanager
    async def line(self, peer):
        await trio.lowlevel.checkpoint()

        async def fetch(shard, first, count, take):
            for number in range(first, first + count):
                begun = trio.current_time()
                try:
                    await trio.sleep(self.paces[peer])
                except trio.Cancelled:
                    self.lost += (trio.current_time() - begun) / self.paces[peer]
                    raise
                take(number, chunk(number))
                self.given.append((peer, number))

        yield SimpleNamespace(fetch=fetch)

    def accuse(self, peer, what):
        raise AssertionError(what)


@pytest.mark.parametrize(
    ("paces", "within", "slow"),
    [
        ({"a": 250.0, "b": 0.5}, 2 * 3 + 8 * 0.5, 0),  # one is asked for eight, the other for four
        ({"a": 2.0, "b": 0.5}, 2 * 3 + 8 * 0.5, 3),
        ({"a": 250.0, "b": 0.5, "c": 0.5, "d": 250.0}, 3 * 3 + 8 * 0.5, 0),
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
