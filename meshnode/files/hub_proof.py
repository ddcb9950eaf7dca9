"""Whether shards are what a hub has, told from samples: ids come from bytes, and who has not fetched all of them cannot tell."""

from collections.abc import Awaitable, Callable, Mapping

import trio
from blake3 import blake3

from meshnode.errors import MeshnodeError, PeerMisbehaved, ShardCorrupt
from meshnode.files.hub_shares import HubShare, SharedShard
from meshnode.files.peer_ports import ChunkLine
from meshnode.files.samples import Sample, samples
from meshnode.files.shard_file import HashedBytes
from meshnode.files.share_making import ShareMaker
from meshnode.types.manifest import CHUNK_BYTES

__all__ = ["fetch_sample", "prove"]

_AT_ONCE = 4  # samples


async def prove(
    maker: ShareMaker,
    share: HubShare,
    said: Mapping[SharedShard, HashedBytes],
    sampled: Callable[[Sample], Awaitable[bytes]],
) -> None:
    """Compare some of what shards are made of, which `sampled` returns, with what the hub has, several samples at a time.

    Raises PeerMisbehaved where that is something else, SourceUnavailable when the hub cannot be asked, and what `sampled` does.
    """
    async with maker.hub.connect() as connections:
        left = samples(list(said.items()))

        async def compare() -> None:
            for sample in left:
                given = await sampled(sample)
                if given != await maker.read(connections, share, sample.shard, sample.start, sample.end):
                    raise PeerMisbehaved(f"other bytes than the hub has in {sample.shard.place}")

        try:
            async with trio.open_nursery() as nursery:
                for _ in range(_AT_ONCE):
                    nursery.start_soon(compare)
        except* MeshnodeError as group:
            raise group.exceptions[0] from None


async def fetch_sample(line: ChunkLine, sample: Sample) -> bytes:
    """Return the sampled bytes of a chunk, as a peer has it. Raises PeerError leafs, ShardCorrupt."""
    taken: list[bytes] = []

    def take(_number: int, data: bytes) -> None:
        if blake3(data).hexdigest() != sample.hashed.chunks[sample.chunk]:
            raise ShardCorrupt("a chunk has other bytes than were said of it")
        taken.append(data)

    await line.fetch(sample.hashed.id, sample.chunk, 1, take)
    first = sample.chunk * CHUNK_BYTES
    return taken[0][sample.start - first : sample.end - first]
