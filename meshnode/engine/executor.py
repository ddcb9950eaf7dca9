"""What runs a stage: the protocol between the router and the engine.

A stage executor owns the weights of one stage on one device and the KV caches of the sessions that use it. The one
that runs is `ProcessExecutor`, a supervised worker process.
"""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import attrs

from meshnode.types.blocks import BlockRange
from meshnode.types.generation import SamplingParameters, TokenEvent
from meshnode.types.ids import ModelId, SessionId
from meshnode.types.manifest import ModelConfig, ShardDescriptor

__all__ = ["ExecutorStats", "Generation", "StageExecutor", "StageResult", "StageSpec", "StageStep"]


@attrs.frozen
class StageSpec:
    """Everything needed to load one stage; it crosses the process border, so it holds only plain values."""

    model: ModelId
    config: ModelConfig
    blocks: BlockRange
    embedding: bool  # the stage turns tokens into activations
    head: bool  # the stage turns activations into logits and samples
    shards: tuple[ShardDescriptor, ...]  # in the order of ModelManifest.shards_for
    paths: tuple[str, ...]  # one verified file per shard, same order
    device: str  # "auto", "cpu", "cuda" or "cuda:N"
    threads: int  # intra-op threads; 0 is one per physical core
    context_length: int  # tokens; never above config.context_length
    cache_bytes: int  # budget for the KV caches of all sessions together; 0 is half of the memory that is free
    max_batch: int = 8  # sessions that decode in one step

    @property
    def is_whole_model(self) -> bool:
        """Whether tokens go in and tokens come out."""
        return self.embedding and self.head and self.blocks == self.config.blocks


@attrs.frozen
class Generation:
    """A request to a whole-model stage to prefill and then decode on its own until an end.

    `tokens` is the prompt followed by what has been generated so far (nothing, unless a lost answer is being
    resumed). Since sampling is seeded by (seed, position) and rows are invariant, resuming gives the same tokens.
    """

    session: SessionId
    tokens: tuple[int, ...]
    prompt_length: int  # 1 <= prompt_length <= len(tokens); penalties count tokens[prompt_length:]
    max_tokens: int  # further tokens to sample, >= 1
    sampling: SamplingParameters
    end_tokens: frozenset[int] = frozenset()  # sampling one ends the generation; it is reported as the last event


@attrs.frozen
class StageStep:
    """One forward of one session at this stage. Exactly one of `tokens` and `activations` is set.

    The rows are appended to the session's cache at `position`; a position below the cache's length truncates it first.
    `activations` are raw little-endian bfloat16, [rows, hidden_size].
    """

    session: SessionId
    position: int
    tokens: tuple[int, ...] = ()
    activations: bytes = b""
    sampling: SamplingParameters | None = None  # a head stage samples after the last row when set
    history: tuple[int, ...] = ()  # generated tokens so far, for the penalties


@attrs.frozen
class StageResult:
    """What a step gave: activations for the next stage, or a token if the stage has the head and sampling was asked."""

    session: SessionId
    position: int
    activations: bytes = b""
    token: TokenEvent | None = None


@attrs.frozen
class ExecutorStats:
    """A snapshot of the executor, for metrics and the planner."""

    weight_bytes: int
    cache_bytes_used: int
    cache_bytes_budget: int
    sessions: int
    resident_bytes: int  # of the worker process; 0 when unknown
    prefill_tokens: int  # since the start
    decode_tokens: int


class StageExecutor(Protocol):
    """Runs one stage. Everything it holds for a session goes when the session is released or its scope ends."""

    def generate(self, request: Generation) -> AbstractAsyncContextManager[AsyncIterator[TokenEvent]]:
        """Start a generation and yield its token events in order; the iteration ends after the last.

        Only for whole-model stages. Leaving the context, by cancellation too, frees the session's cache between two
        steps. Raises OutOfMemory when the cache budget cannot hold the request, WorkerLost when the worker ends (also
        out of the iteration).
        """
        ...

    async def step(self, step: StageStep) -> StageResult:
        """Run one step. Cancellation abandons the answer; the step itself may still run."""
        ...

    async def release(self, session: SessionId) -> None:
        """Free everything held for `session`; unknown sessions are fine."""
        ...

    async def stats(self) -> ExecutorStats:
        """Return a fresh snapshot."""
        ...
