"""What runs a stage: the protocol between the router and the engine.

A stage executor owns the weights of one stage on one device and the KV caches of the sessions that use it. The one
that runs is `ProcessExecutor`, a supervised worker process.
"""

import enum
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import attrs

from meshnode.types.blocks import BlockRange
from meshnode.types.generation import SamplingParameters, TokenEvent
from meshnode.types.ids import ModelId, SessionId
from meshnode.types.manifest import ModelConfig, ShardDescriptor
from meshnode.types.rings import RingPlace
from meshnode.wire.ring_messages import RingDoor

__all__ = [
    "ExecutorStats",
    "Generation",
    "RingEvent",
    "RingSign",
    "RingToken",
    "StageExecutor",
    "StageReservation",
    "StageResult",
    "StageSpec",
    "StageStep",
    "TokenEvents",
]


@attrs.frozen
class StageSpec:
    """Everything needed to load one stage; it crosses the process border, so it holds only plain values."""

    model: ModelId
    config: ModelConfig
    blocks: BlockRange | None  # None: no block, only the embedding or the head, or both
    embedding: bool  # the stage turns tokens into activations
    head: bool  # the stage turns activations into logits and samples
    shards: tuple[ShardDescriptor, ...]  # in the order of ModelManifest.shards_for
    paths: tuple[str, ...]  # one verified file per shard, same order
    device: str  # "auto", "cpu", "cuda" or "cuda:N"
    threads: int  # intra-op threads; 0 is one per physical core
    context_length: int  # tokens; never above config.context_length
    cache_bytes: int  # budget for the KV caches of all sessions together; 0 is half of the memory that is free
    max_batch: int = 8  # sessions that decode in one step
    ram_limit: int | None = None  # bytes that weights and caches may take of the system's memory; None: what is free
    gpu_limit: int | None = None  # likewise, on a GPU
    tokenizer: str = ""  # path of the tokenizer's verified shard, for grammars; only a stage with the head needs it

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
    asker: str = ""  # whose it is; beginnings of texts are shared among generations of one asker only


@attrs.frozen
class StageReservation:
    """What one session needs of a loaded stage, or of a part of it."""

    blocks: BlockRange | None  # within the stage's; None: no block, only the embedding or the head
    embedding: bool
    head: bool
    tokens: int  # positions of KV cache
    prompt_length: int = 0  # for the head: the answer's first token is at this position
    history: tuple[int, ...] = ()  # for the head: the answer so far
    sampling: SamplingParameters | None = None  # for the head
    pages: tuple[bytes, ...] = ()  # names of the first pages of what will be in the cache, by `PageNames`
    asker: str = ""  # whose names these are, and who may find again what is kept under them


@attrs.frozen
class StageStep:
    """One forward of one session. Exactly one of `tokens` and `activations` is set.

    The rows are appended to the session's cache at `position`; a position below the cache's length truncates it first. The
    head samples with as much of its history as lies before the last row's successor, and keeps that and what it sampled:
    so rows that are replayed without sampling do not shorten it. `activations` are raw little-endian bfloat16, [rows,
    hidden_size].
    """

    session: SessionId
    position: int
    tokens: tuple[int, ...] = ()
    activations: bytes = b""
    sample: bool = False  # the head samples after the last row
    return_from: int = 0  # rows below this position are computed and not returned
    number: int = 0  # of the step; those that follow in the ring count on
    until: int = 0  # the ring turns after this step, up to the row before this position; 0: it does not


@attrs.frozen
class StageResult:
    """What a step gave: activations for the next stage, or a token if the stage has the head and sampling was asked."""

    session: SessionId
    position: int  # of the first row returned
    activations: bytes = b""
    token: TokenEvent | None = None
    goes_round: bool = False  # the worker has handed its rows on itself


@attrs.frozen
class RingToken:
    """A token that the head sampled of a step that went round."""

    step: int
    position: int  # of the row it was sampled after
    event: TokenEvent


class RingSign(enum.Enum):
    """What else is heard of a session's part in its ring."""

    ENTERED = "entered"  # both neighbours are connected
    TURNING = "turning"  # rows pass; said at most once a second


RingEvent = RingToken | RingSign


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
    block_seconds: float = 0.0  # one decode row through one block, as measured lately
    prefill_seconds: float = 0.0  # one row of a long prompt through one block
    free_tokens: int = 0  # positions that can still be reserved for the whole stage
    device: str = ""  # the one chosen, where the spec said "auto"
    drift_class: str = ""  # kernels, dtypes and device kind: equal classes give equal bits
    gpu_free_bytes: int = 0  # on its GPU, by this process and others; 0 on a CPU
    kept_bytes: int = (
        0  # beside those used: pages of the past that others may begin with, and that go when room is wanted
    )


class TokenEvents(Protocol):
    """The tokens of one generation, in order."""

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompt that needed no computing; known when the first event is there."""
        ...

    def __aiter__(self) -> AsyncIterator[TokenEvent]:
        """Iterate."""
        ...

    async def __anext__(self) -> TokenEvent:
        """Return the next one."""
        ...


class StageExecutor(Protocol):
    """Runs one stage. Everything it holds for a session goes when the session is released or its scope ends."""

    def generate(self, request: Generation) -> AbstractAsyncContextManager[TokenEvents]:
        """Start a generation and yield its token events in order; the iteration ends after the last.

        Only for whole-model stages. Leaving the context, by cancellation too, frees the session's cache between two
        steps. Raises OutOfMemory when the cache budget cannot hold the request, WorkerLost when the worker ends (also
        out of the iteration).
        """
        ...

    async def reserve(self, session: SessionId, reservation: StageReservation) -> int:
        """Reserve memory for a session and return how many positions its cache holds.

        A session that is there with the same blocks and room enough keeps its cache; its history and sampling are replaced,
        and steps of it that still wait end with SessionLost. Anything else of that name is freed first, and
        the new cache begins with what is kept of `reservation.pages`, often nothing.
        Raises OutOfMemory, RequestError for blocks that are not loaded, WorkerLost.
        """
        ...

    async def step(self, step: StageStep) -> StageResult:
        """Run one step. Cancellation abandons the answer; the step itself may still run.

        Raises SessionLost for a session without a reservation, RequestError for rows that do not fit it, WorkerLost.
        """
        ...

    async def open_door(self, session: SessionId, place: RingPlace) -> RingDoor | None:
        """Expect the worker of the stage before, and return where; None where workers of this kind have no doors.

        What the session had of an earlier ring ends. Raises RingBroken when nobody can be let in, WorkerLost.
        """
        ...

    def ring(
        self, session: SessionId, door: RingDoor, *, tells: bool
    ) -> AbstractAsyncContextManager[AsyncIterator[RingEvent]]:
        """Connect to the worker of the next stage, and yield what is heard of the session's ring: tokens only if it `tells`.

        The iteration raises RingBroken when a neighbour is lost, what a lap failed with, and WorkerLost. Leaving the context ends
        the iteration and nothing else: a new reservation, a new door and a release take the session out of its ring.
        """
        ...

    def let_turn(self, session: SessionId, until: int) -> None:
        """Let the session's ring turn up to the row before position `until`. Raises WorkerLost."""
        ...

    async def release(self, session: SessionId) -> None:
        """Free everything held for `session`; unknown sessions are fine."""
        ...

    async def stats(self) -> ExecutorStats:
        """Return a fresh snapshot."""
        ...
