"""What the daemon and a worker say to each other, over a socket or, in tests, over a queue.

Both sides know more kinds with every version, so a kind that one side does not know is skipped. Errors travel as their
code and their sentence and become the same class on the other side.
"""

from typing import get_args

import attrs
import msgspec

from meshnode.engine.executor import ExecutorStats, Generation, StageReservation, StageSpec
from meshnode.errors import UnknownMessage
from meshnode.types.generation import TokenEvent
from meshnode.types.ids import SessionId
from meshnode.types.rings import RingPlace
from meshnode.wire.failures import Failed
from meshnode.wire.frames import Frame, FrameDecoder, FrameLimits, encode_frame
from meshnode.wire.ring_messages import RingDoor
from meshnode.wire.tagged import TaggedCodec

__all__ = [
    "Accepted",
    "Answer",
    "BatchLimits",
    "Cancel",
    "DoorOpened",
    "EnterRing",
    "Envelope",
    "FrameCodec",
    "Generate",
    "Grant",
    "Lapped",
    "LetTurn",
    "Load",
    "Loading",
    "OpenDoor",
    "Ping",
    "Pong",
    "Progress",
    "Question",
    "Ready",
    "Release",
    "Released",
    "Reserve",
    "Reserved",
    "RingEntered",
    "Sampled",
    "Stats",
    "StatsRequest",
    "Step",
    "StepDone",
    "Turning",
    "from_worker_codec",
    "to_worker_codec",
]

_HEADER_ONLY = 1
_WITH_BODY = 2
LIMITS = FrameLimits({_HEADER_ONLY: 16 << 20, _WITH_BODY: 256 << 20})
"""A header-only frame carries at most a manifest without its chunk hashes, or a prompt of about 3 million tokens; a body
at most 8192 rows of 16,384 bfloat16 activations."""


@attrs.frozen
class BatchLimits:
    """How many rows of a prompt go into one step: many when nothing decodes, few when others wait for their token."""

    prefill_alone: int = 512  # tokens
    prefill_mixed: int = 128  # tokens


# Questions: daemon to worker. The exchange is in the frame.


class Load(msgspec.Struct, frozen=True, tag="load"):
    """Load this stage. The first message; answered with Loading*, then Ready or Failed."""

    spec: StageSpec
    limits: BatchLimits


class Generate(msgspec.Struct, frozen=True, tag="generate"):
    """Start a generation. Answered with Accepted and Progress, or with Failed."""

    generation: Generation
    window: int  # tokens that may be sent before more are granted


class Grant(msgspec.Struct, frozen=True, tag="grant"):
    """The reader of a generation took `tokens` more; as many may be sent on top."""

    tokens: int


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """Nobody waits for this exchange any more. Not answered."""


class Reserve(msgspec.Struct, frozen=True, tag="reserve"):
    """Reserve what a session needs of this stage. Answered with Reserved or Failed."""

    session: SessionId
    reservation: StageReservation


class Step(msgspec.Struct, frozen=True, tag="step", omit_defaults=True):
    """A StageStep; its activations are the body. Answered with StepDone or Failed."""

    session: SessionId
    position: int
    tokens: tuple[int, ...] = ()
    sample: bool = False
    return_from: int = 0
    number: int = 0
    until: int = 0


class OpenDoor(msgspec.Struct, frozen=True, tag="open_door"):
    """Expect the worker before this one, for a session. Answered with DoorOpened or Failed."""

    session: SessionId
    place: RingPlace


class EnterRing(msgspec.Struct, frozen=True, tag="enter_ring"):
    """Connect to the next worker. Answered with RingEntered, what goes round then, and Failed when it does no longer."""

    session: SessionId
    door: RingDoor
    tells: bool  # of tokens


class LetTurn(msgspec.Struct, frozen=True, tag="let_turn"):
    """The session's ring may turn up to the row before position `until`. Not answered."""

    session: SessionId
    until: int


class Release(msgspec.Struct, frozen=True, tag="release"):
    """Free everything held for a session. Answered with Released."""

    session: SessionId


class StatsRequest(msgspec.Struct, frozen=True, tag="stats_request"):
    """Ask for Stats."""


class Ping(msgspec.Struct, frozen=True, tag="ping"):
    """Ask for a sign of life. Answered by Pong, also in the middle of a step."""


Question = (
    Load | Generate | Grant | Cancel | Reserve | Step | OpenDoor | EnterRing | LetTurn | Release | StatsRequest | Ping
)


# Answers: worker to daemon.


class Loading(msgspec.Struct, frozen=True, tag="loading"):
    """Load progress, in blocks."""

    done: int
    total: int


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The stage is loaded."""

    device: str  # the one chosen, where the spec said "auto"
    weight_bytes: int
    cache_bytes: int


class Accepted(msgspec.Struct, frozen=True, tag="accepted"):
    """The generation's cache is reserved."""


class Sampled(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True, gc=False):
    """One token of one generation; positional, since there is one for every token."""

    exchange: int
    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    prompt: tuple[TokenEvent, ...] = ()
    vector: bytes = b""

    def event(self) -> TokenEvent:
        """Return it as the executor's value."""
        return TokenEvent(self.token, self.logprob, self.top, self.prompt, self.vector)


class Progress(msgspec.Struct, frozen=True, tag="progress", omit_defaults=True):
    """What one step gave, for all generations in it; `ended` had their last token here.

    `cached` says of generations whose first token this is, and how many tokens of their prompts needed no computing.
    """

    sampled: tuple[Sampled, ...]
    ended: tuple[int, ...] = ()
    cached: tuple[tuple[int, int], ...] = ()


class Reserved(msgspec.Struct, frozen=True, tag="reserved"):
    """The memory is there; the session's cache holds positions 0 to `length`."""

    length: int


class StepDone(msgspec.Struct, frozen=True, tag="step_done", omit_defaults=True):
    """A StageResult; its activations are the body."""

    position: int
    token: TokenEvent | None = None
    goes_round: bool = False


class DoorOpened(msgspec.Struct, frozen=True, tag="door_opened"):
    """Where the worker before this one is expected, and the token that it has to show."""

    port: int
    token: bytes


class RingEntered(msgspec.Struct, frozen=True, tag="ring_entered"):
    """The workers before and behind this one are connected to it."""


class Lapped(msgspec.Struct, frozen=True, tag="lapped"):
    """A step has gone round as far as the head: said there, or where its token comes to next."""

    step: int
    position: int
    token: TokenEvent


class Turning(msgspec.Struct, frozen=True, tag="turning"):
    """Rows of the session pass; said at most once a second."""


class Released(msgspec.Struct, frozen=True, tag="released"):
    """The session's memory is free."""


class Stats(msgspec.Struct, frozen=True, tag="stats"):
    """A snapshot."""

    stats: ExecutorStats


class Pong(msgspec.Struct, frozen=True, tag="pong"):
    """The process runs. `silent_for` seconds the engine loop has been at one and the same thing, 0 when it is idle."""

    silent_for: float


Answer = (
    Loading
    | Ready
    | Accepted
    | Progress
    | Reserved
    | StepDone
    | DoorOpened
    | RingEntered
    | Lapped
    | Turning
    | Released
    | Stats
    | Pong
    | Failed
)


@attrs.frozen
class Envelope:
    """A message with the exchange it belongs to and, for activations, its body."""

    exchange: int
    message: Question | Answer
    body: bytes = b""


@attrs.define(eq=False)
class FrameCodec:
    """One end of the socket: envelopes to bytes, bytes to envelopes."""

    _outgoing: TaggedCodec[Question | Answer]
    _incoming: TaggedCodec[Question | Answer]
    _decoder: FrameDecoder = attrs.field(factory=lambda: FrameDecoder(LIMITS), init=False)

    def encode(self, envelope: Envelope) -> bytes:
        """Return the bytes of one message. Raises FrameTooLarge."""
        kind = _WITH_BODY if envelope.body else _HEADER_ONLY
        return encode_frame(
            Frame(kind, envelope.exchange, self._outgoing.encode(envelope.message), envelope.body), LIMITS
        )

    def feed(self, data: bytes) -> list[Envelope]:
        """Take received bytes and return the messages that are whole; kinds of other versions are left out.

        Raises WireError when the other side breaks the protocol.
        """
        envelopes = []
        for frame in self._decoder.feed(data):
            try:
                message = self._incoming.decode(frame.header)
            except UnknownMessage:
                continue
            envelopes.append(Envelope(frame.exchange, message, frame.body))
        return envelopes


def _questions() -> TaggedCodec[Question | Answer]:
    return TaggedCodec[Question | Answer](*get_args(Question))


def _answers() -> TaggedCodec[Question | Answer]:
    return TaggedCodec[Question | Answer](*get_args(Answer))


def to_worker_codec() -> FrameCodec:
    """Return the daemon's end."""
    return FrameCodec(_questions(), _answers())


def from_worker_codec() -> FrameCodec:
    """Return the worker's end."""
    return FrameCodec(_answers(), _questions())
