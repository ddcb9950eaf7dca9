"""A stage: blocks [a, b) of one model, with the embedding and the head where they belong to it.

The forward pass takes rows of several sessions at once and gives each row the same bits whatever else is in the batch.
Between blocks the activations are bfloat16, so a model that is cut at a block border and one that is not compute the same.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Self

import attrs
import torch

from meshnode.engine.architectures.llama import LlamaBlock
from meshnode.engine.architectures.registry import block_class
from meshnode.engine.executor import StageSpec
from meshnode.engine.kv_cache import PAGE, PagePool, SessionCache
from meshnode.engine.layers.attention import Attention
from meshnode.engine.layers.direct_attention import DirectAttention
from meshnode.engine.layers.embedding import Embedding
from meshnode.engine.layers.linear import Linear, build_linear
from meshnode.engine.layers.norm import RMSNorm
from meshnode.engine.layers.rotary import Rotary
from meshnode.engine.layers.row_attention import RowPlans
from meshnode.engine.pace import Pace
from meshnode.engine.weights import StageWeights

__all__ = ["Head", "Part", "Rows", "StageModel", "Wanted"]

Wanted = Literal["none", "last", "all", "states"]

_NO_BOUND = 1 << 30  # tokens


@attrs.frozen
class Part:
    """What of a stage a step runs. All rows of a step run the same part."""

    blocks: range  # counted from the stage's first block; empty: only the embedding or the head
    embedding: bool  # tokens go in
    head: bool  # logits come out


@attrs.frozen(eq=False)
class Rows:
    """Consecutive positions of one session in one step; the forward appends them to its cache."""

    cache: SessionCache
    inputs: torch.Tensor  # int64 [n] token ids if the stage has the embedding, else bfloat16 [n, hidden]
    logits: Wanted = "last"  # of which rows, or their final states instead; ignored by a stage without the head


@attrs.frozen(eq=False)
class Head:
    """The final norm and the output projection."""

    norm: RMSNorm
    output: Linear

    @property
    def nbytes(self) -> int:
        """Bytes of weights held."""
        return self.norm.nbytes + self.output.nbytes

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Map bfloat16 [n, hidden] to float32 logits [n, vocabulary]."""
        return self.output.logits(self.norm(rows))


@attrs.frozen(eq=False)
class StageModel:
    """The weights of a stage and the pool its sessions' caches come from."""

    spec: StageSpec
    embedding: Embedding | None
    blocks: tuple[LlamaBlock, ...]
    head: Head | None
    rotary: Rotary
    pool: PagePool
    plans: RowPlans
    pace: Pace = attrs.field(factory=Pace)  # of its blocks, so far

    @classmethod
    def load(cls, spec: StageSpec, progress: Callable[[int, int], None] | None = None) -> Self:
        """Map the shards and pack their weights; `progress` hears (blocks done, blocks in all).

        Raises InvalidModelFile and UnsupportedModel; nothing is kept then.
        """
        device = torch.device(spec.device)
        paths = [Path(path) for path in spec.paths]
        weights = StageWeights.open(zip(spec.shards, paths, strict=True))
        kind = block_class(spec.config.architecture)
        embedding = Embedding(weights.matrix("token_embd.weight"), device) if spec.embedding else None
        blocks: list[LlamaBlock] = []
        wanted = spec.blocks or ()
        for block in wanted:
            blocks.append(kind.load(weights, spec.config, block, device))
            if progress is not None:
                progress(len(blocks), len(wanted))
        head = _load_head(weights, spec, device) if spec.head else None
        weights.check_all_taken()
        pool = PagePool(len(blocks), spec.config.kv_head_count, spec.config.head_size, spec.cache_bytes, device)
        rotary = Rotary.from_config(spec.config, spec.context_length, device)
        return cls(spec, embedding, tuple(blocks), head, rotary, pool, RowPlans(pool, spec.config.head_count))

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights in memory; the memory-mapped embedding is not among them."""
        return sum(block.nbytes for block in self.blocks) + (self.head.nbytes if self.head else 0)

    def open_cache(self, tokens: int) -> SessionCache:
        """Reserve a session's cache for `tokens` positions. Raises OutOfMemory."""
        return SessionCache.open(self.pool, tokens)

    @property
    def free_tokens(self) -> int:
        """Positions that can still be reserved for all blocks; without blocks they cost nothing."""
        pool = self.pool
        return (pool.budget_bytes - pool.used_bytes) // pool.page_bytes * PAGE if self.blocks else _NO_BOUND

    @property
    def whole(self) -> Part:
        """All of it."""
        return Part(range(len(self.blocks)), self.spec.embedding, self.spec.head)

    def forward(self, rows: Sequence[Rows], part: Part | None = None) -> list[torch.Tensor]:
        """Run one step for all `rows` together, through `part` of the stage (None: all of it).

        Returns, per entry, bfloat16 activations [n, hidden] without the head, else float32 logits [0, 1 or n, vocabulary],
        or the final states [n, hidden] that they would be made of.
        Each cache grows by its n rows. Raises OutOfMemory, before anything is computed, when one cannot.
        """
        with torch.inference_mode():
            return self._forward(rows, part or self.whole)

    def _forward(self, rows: Sequence[Rows], part: Part) -> list[torch.Tensor]:
        rows, order = self._prepared(rows) if part.blocks else (rows, range(len(rows)))
        counts = [len(entry.inputs) for entry in rows]
        inputs = rows[0].inputs.clone() if len(rows) == 1 else torch.cat([entry.inputs for entry in rows])
        embedding = self.embedding if part.embedding else None
        activations = embedding(inputs) if embedding is not None else inputs.to(self.pool.device)
        if part.blocks:
            activations = self._through_blocks(activations, [(entry.cache, len(entry.inputs)) for entry in rows], part)
        pieces = list(activations.split(counts))
        results = self._logits(self.head, rows, pieces) if part.head and self.head is not None else pieces
        return [result for _, result in sorted(zip(order, results, strict=True), key=lambda pair: pair[0])]

    def _prepared(self, rows: Sequence[Rows]) -> tuple[Sequence[Rows], Sequence[int]]:
        """Have every cache's pages there. Return the rows as attention likes them best, and where each of them was."""
        for entry in rows:
            entry.cache.require(len(entry.inputs))
        keys = [Attention.order((entry.cache, len(entry.inputs))) for entry in rows]
        order = sorted(range(len(rows)), key=keys.__getitem__)
        return [rows[index] for index in order], order

    def _through_blocks(
        self, activations: torch.Tensor, caches: Sequence[tuple[SessionCache, int]], part: Part
    ) -> torch.Tensor:
        began = time.perf_counter()
        rotations = self.rotary.rotations([(cache.length, count) for cache, count in caches])
        attention: Attention | DirectAttention = (
            DirectAttention.begin(rotations, caches, self.pool, self.spec.config.head_count)
            if DirectAttention.suits(self.pool)
            else Attention.begin(rotations, caches, self.plans)
        )
        for index in part.blocks:
            activations = self.blocks[index].forward(activations, attention, index)
        for cache, count in caches:
            cache.length += count
        if activations.is_cuda:
            torch.cuda.synchronize(activations.device)  # costs nothing: whoever called waits for the result next
        self.pace.saw(len(activations), len(part.blocks), time.perf_counter() - began)
        return activations

    def _logits(self, head: Head, rows: Sequence[Rows], pieces: list[torch.Tensor]) -> list[torch.Tensor]:
        wanted = [_wanted(piece, entry.logits) for entry, piece in zip(rows, pieces, strict=True)]
        sizes = [len(piece) for piece in wanted]
        if any(sizes):
            found = list(head(torch.cat(wanted)).split(sizes))
        else:
            found = [piece.new_empty(0, self.spec.config.vocabulary_size, dtype=torch.float32) for piece in wanted]
        return [
            head.norm(piece).float() if entry.logits == "states" else logits
            for entry, piece, logits in zip(rows, pieces, found, strict=True)
        ]


def _wanted(piece: torch.Tensor, logits: Wanted) -> torch.Tensor:
    if logits == "all":
        return piece
    return piece[-1:] if logits == "last" else piece[:0]


def _load_head(weights: StageWeights, spec: StageSpec, device: torch.device) -> Head:
    norm = RMSNorm.from_weight(weights.vector("output_norm.weight"), spec.config.norm_epsilon, device)
    return Head(norm, build_linear([weights.matrix("output.weight")], device=device))
