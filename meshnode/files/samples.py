"""Which bytes of a share are compared with the hub's: chosen at random, when nobody can prepare for it."""

import random
from collections.abc import Iterator, Sequence

import attrs

from meshnode.files.hub_shares import SharedShard
from meshnode.files.shard_file import HashedBytes
from meshnode.types.manifest import CHUNK_BYTES

__all__ = ["Sample", "samples"]

_CHUNKS = 0.1  # of a share's chunks
_BYTES = 64 << 10  # of each that come from the hub again: with the above, 0.6 % of the share


@attrs.frozen
class Sample:
    """Bytes `start` to `end` (exclusive) of a shard, all in one chunk."""

    shard: SharedShard
    hashed: HashedBytes  # what is said of it
    chunk: int
    start: int
    end: int


def samples(share: Sequence[tuple[SharedShard, HashedBytes]]) -> Iterator[Sample]:
    """Yield samples of a share, at least one if there is anything in it."""
    rng = random.SystemRandom()
    chunks = [(shard, hashed, chunk) for shard, hashed in share for chunk in range(len(hashed.chunks))]
    for shard, hashed, chunk in rng.sample(chunks, min(len(chunks), max(1, int(_CHUNKS * len(chunks))))):
        first, last = chunk * CHUNK_BYTES, min((chunk + 1) * CHUNK_BYTES, hashed.nbytes)
        start = rng.randint(first, max(first, last - _BYTES))
        yield Sample(shard, hashed, chunk, start, min(last, start + _BYTES))
