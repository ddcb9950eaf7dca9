"""Samples of what peers say are compared with the hub's bytes, several at a time."""

from contextlib import asynccontextmanager

import attrs
import pytest
import trio

from meshnode.errors import PeerMisbehaved
from meshnode.files.hub_proof import prove
from meshnode.files.hub_shares import SharedShard
from meshnode.files.shard_file import HashedBytes
from meshnode.types.ids import ShardId
from meshnode.types.manifest import CHUNK_BYTES, ShardKind

SHARD = SharedShard(ShardKind.BLOCK, 3, ())
SAID = {SHARD: HashedBytes(ShardId("0" * 64), ("0" * 64,) * 80, 80 * CHUNK_BYTES)}


@attrs.define(eq=False)
class Maker:
    """Has zeros, but for its `wrong` answer, and takes a second for each."""

    wrong: int = -1
    answers: int = 0

    @property
    def hub(self):
        return self

    @asynccontextmanager
    async def connect(self):
        yield None

    async def read(self, _connections, _share, _shard, start, end):
        self.answers += 1
        is_wrong = self.answers == self.wrong
        await trio.sleep(1)
        return (b"x" if is_wrong else bytes(1)) * (end - start)


async def zeros(sample):
    await trio.lowlevel.checkpoint()
    return bytes(sample.end - sample.start)


async def test_four_at_a_time(autojump_clock):
    maker = Maker()
    await prove(maker, None, SAID, zeros)
    assert maker.answers == 8
    assert trio.current_time() == pytest.approx(2)


async def test_one_that_is_wrong_ends_it_and_is_named(autojump_clock):
    maker = Maker(wrong=2)
    with pytest.raises(PeerMisbehaved, match="in block 3"):
        await prove(maker, None, SAID, zeros)
    assert maker.answers == 4
