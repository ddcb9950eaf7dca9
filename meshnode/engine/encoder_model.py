"""A stage of an encoder: reads whole texts and keeps nothing of them.

Each text is computed by itself, so its vector has the same bits whatever else is in the batch. Between two blocks activations
are bfloat16, so a model that is cut at a block border and one that is not compute the same; that costs all-MiniLM-L6-v2 a
cosine of 6e-6 against float32 throughout.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import attrs
import torch

from meshnode.engine.architectures.bert import BertBlock, BertEmbedding
from meshnode.engine.executor import StageSpec
from meshnode.engine.kv_cache import PagePool
from meshnode.engine.no_cache import NoCache
from meshnode.engine.pace import Pace
from meshnode.engine.stage_model import Part, Rows
from meshnode.engine.weights import StageWeights

__all__ = ["EncoderModel"]

_NO_BOUND = 1 << 30  # tokens


@attrs.frozen(eq=False)
class EncoderModel:
    """The weights of a stage."""

    spec: StageSpec
    embedding: BertEmbedding | None
    blocks: tuple[BertBlock, ...]
    pool: PagePool  # without pages
    pace: Pace = attrs.field(factory=Pace)

    @classmethod
    def load(cls, spec: StageSpec, progress: Callable[[int, int], None] | None = None) -> Self:
        """Read the shards; `progress` hears (blocks done, blocks in all). Raises InvalidModelFile and UnsupportedModel."""
        device = torch.device(spec.device)
        weights = StageWeights.open(zip(spec.shards, [Path(path) for path in spec.paths], strict=True))
        embedding = BertEmbedding.load(weights, spec.config, device) if spec.embedding else None
        blocks: list[BertBlock] = []
        wanted = spec.blocks or ()
        for block in wanted:
            blocks.append(BertBlock.load(weights, spec.config, block, device))
            if progress is not None:
                progress(len(blocks), len(wanted))
        weights.check_all_taken()
        pool = PagePool(0, spec.config.kv_head_count, spec.config.head_size, spec.cache_bytes, device)
        return cls(spec, embedding, tuple(blocks), pool)

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights in memory."""
        return sum(block.nbytes for block in self.blocks) + (self.embedding.nbytes if self.embedding else 0)

    @property
    def free_tokens(self) -> int:
        """Positions that can still be reserved: they cost nothing."""
        return _NO_BOUND

    def open_cache(self, tokens: int) -> NoCache:
        """Count the positions of a text."""
        return NoCache(tokens)

    def forward(self, rows: Sequence[Rows], part: Part | None = None) -> list[torch.Tensor]:
        """Run one text per entry through `part` of the stage.

        Returns bfloat16 [n, hidden] without the head, and with it the final states, float32 [n, hidden].
        """
        with torch.inference_mode():
            return [self._forward(entry, part or self.whole) for entry in rows]

    @property
    def whole(self) -> Part:
        """All of it."""
        return Part(range(len(self.blocks)), self.spec.embedding, self.spec.head)

    def _forward(self, entry: Rows, part: Part) -> torch.Tensor:
        device = self.pool.device
        with_embedding = part.embedding and self.embedding is not None
        rows = self.embedding(entry.inputs).bfloat16() if with_embedding else entry.inputs.to(device)  # type: ignore[misc]
        began = time.perf_counter()
        for index in part.blocks:
            rows = self.blocks[index](rows.float()).bfloat16()
        if part.blocks:
            entry.cache.length += len(rows)
            self.pace.saw(len(rows), len(part.blocks), time.perf_counter() - began)
        return rows.float() if part.head else rows
