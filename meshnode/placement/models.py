"""Models as far as placement cares: what they weigh, who asks for them, and the pieces they are held in."""

from collections.abc import Iterator

import attrs

from meshnode.types.ids import ModelId
from meshnode.types.segments import segments_of

__all__ = ["ModelFacts", "Segment"]


@attrs.frozen
class Segment:
    """A run of blocks of one model that is held, fetched and dropped as one; embedding and head go with the first and last."""

    model: ModelId
    index: int


@attrs.frozen
class ModelFacts:
    """A model as far as placement cares."""

    model: ModelId
    block_count: int
    block_bytes: int  # of one block, on average, ends included
    demand: float = 0.0  # requests per hour over the whole mesh, decaying
    is_pinned: bool = False  # somebody asked for it by name

    @property
    def nbytes(self) -> int:
        """Bytes of the whole model."""
        return self.block_count * self.block_bytes

    @property
    def segment_count(self) -> int:
        """How many segments it is cut into."""
        return len(segments_of(self.block_count))

    def blocks(self, index: int) -> range:
        """Return the blocks of a segment: the cut depends on the count of blocks alone, so all nodes agree."""
        blocks = segments_of(self.block_count)[index]
        return range(blocks.start, blocks.end)

    def segment_bytes(self, index: int) -> int:
        """Return the bytes of a segment."""
        return len(self.blocks(index)) * self.block_bytes

    def segments(self) -> Iterator[Segment]:
        """Yield all of them."""
        return (Segment(self.model, index) for index in range(self.segment_count))
