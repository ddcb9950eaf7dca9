"""What nodes say to each other while they run a session together, over the stage link of each pair.

The coordinator asks every stage to open the session (`OpenStage`, answered `StageOpened` or `Failed`). It then sends steps
to the first stage; each stage acknowledges a step to the coordinator before it computes, and sends what it computed to the
next; the last stage answers the coordinator. So a decode step is one trip round the ring. Replies to the coordinator travel
on the link its `OpenStage` came on, and the session lives no longer than that link.

Where the workers of all stages can reach each other directly, the coordinator has them join in a ring of their own
(`JoinRing`, `RingJoined`; see `ring_messages`). A step that says `until` then goes round by itself, from the last stage to the
first again, up to that position; the coordinator hears of each token, and moves the end on with `TurnRing`.

After a loss the coordinator opens the session again under a higher `attempt`, at the stages that survived too: they keep
their caches and say how far these reach. So they do at first when they still hold the beginning of an earlier
session's text. Rows are then replayed from the lowest position that any stage lacks, and a stage hands on only rows from
`forward_from`, the lowest position that any later stage lacks.

A node that cannot coordinate hands the whole request to one that can (`Delegate`); tokens come back as `DelegatedEvents`.
"""

from typing import Annotated

import msgspec

from meshnode.types.blocks import BlockRange
from meshnode.types.generation import Delta, Finished, GenerationRequest, SamplingParameters, Started, TokenEvent
from meshnode.types.ids import ModelId, PeerId, SessionId
from meshnode.wire.failures import Failed
from meshnode.wire.ring_messages import RingDoor

__all__ = [
    "MOST_PEERS",
    "Acknowledged",
    "Answered",
    "CancelDelegation",
    "CloseStage",
    "Delegate",
    "DelegatedEvents",
    "DelegationFailed",
    "GrantEvents",
    "JoinRing",
    "OpenStage",
    "Probe",
    "ProbeReply",
    "RingJoined",
    "StageFailed",
    "StageMessage",
    "StageOpened",
    "StageStepMessage",
    "TurnRing",
]

MOST_PEERS = 256
"""That a request may be kept among: some 14 KB of names."""

_Session = Annotated[SessionId, msgspec.Meta(max_length=128)]
"""One that we make has 77 characters, and names of sessions are remembered, sent on and sent back."""


class OpenStage(msgspec.Struct, frozen=True, tag="open_stage", omit_defaults=True):
    """Reserve what a session needs at one stage, or go on with what is there from an earlier attempt."""

    session: _Session
    attempt: int  # 1, and one more after each loss; messages of lower attempts are dropped
    model: ModelId
    index: int  # of the stage in the route
    blocks: BlockRange | None  # None: no block, only the embedding or the head
    embedding: bool
    head: bool
    tokens: int  # positions of KV cache to reserve
    previous: PeerId  # who sends the steps
    next: PeerId | None  # who gets the activations; None: the coordinator gets the answers
    prompt_length: int = 0  # for the head, with `history`: which tokens penalties count
    history: tuple[int, ...] = ()  # generated so far
    sampling: SamplingParameters | None = None  # for the head: how to sample
    pages: tuple[
        bytes, ...
    ] = ()  # names of the first pages: the stage may hold them from an earlier session of this coordinator
    ring: bool = False  # a door is wanted, for the worker of the stage before


class StageOpened(msgspec.Struct, frozen=True, tag="stage_opened", omit_defaults=True):
    """The stage is ready; its cache holds positions 0 to `length`."""

    length: int
    door: RingDoor | None = None  # of its worker, if it has one and one was wanted


class JoinRing(msgspec.Struct, frozen=True, tag="join_ring"):
    """Connect the worker of this stage to the next one's, or the last one's to the first's. RingJoined says that it is done."""

    session: _Session
    attempt: int
    index: int
    door: RingDoor  # the next worker's
    tells: bool  # of the first and last stage, which both know each token, the one that answers the coordinator


class RingJoined(msgspec.Struct, frozen=True, tag="ring_joined"):
    """The worker of this stage is connected to those before and behind it."""

    session: _Session
    attempt: int
    index: int


class TurnRing(msgspec.Struct, frozen=True, tag="turn_ring", gc=False):
    """To the first stage: the ring may turn up to the row before position `until`."""

    session: _Session
    attempt: int
    until: int


class StageStepMessage(msgspec.Struct, frozen=True, tag="step", omit_defaults=True, gc=False):
    """Rows to compute: the body is u32 token ids for a stage with the embedding, else bfloat16 [rows, hidden] (little-endian)."""

    session: _Session
    attempt: int
    index: int  # of the stage that is to compute
    step: int  # counts up within an attempt
    position: int  # of the first row
    rows: int
    sample: bool = False  # the head samples after the last row
    forward_from: tuple[int, ...] = ()  # per stage: rows below this position are not handed on; empty: all are
    until: int = 0  # for the first stage: the ring turns by itself after this step, up to the row before this position


class Acknowledged(msgspec.Struct, frozen=True, tag="acknowledged", gc=False):
    """A stage has received a step and not yet computed it."""

    session: _Session
    attempt: int
    step: int
    index: int


class Answered(msgspec.Struct, frozen=True, tag="answered", omit_defaults=True):
    """A step is done: by the last stage, or by one whose rows nobody behind it lacks."""

    session: _Session
    attempt: int
    step: int
    position: int
    token: TokenEvent | None = None


class StageFailed(msgspec.Struct, frozen=True, tag="stage_failed", omit_defaults=True):
    """A stage cannot go on with a session; `blames` is the peer it could not reach, if that is why."""

    session: _Session
    attempt: int
    index: int
    code: str
    message: str
    blames: PeerId | None = None


class CloseStage(msgspec.Struct, frozen=True, tag="close_stage"):
    """Free what attempts below this one hold of a session. Not answered; unknown sessions are fine."""

    session: _Session
    below: int


class Probe(msgspec.Struct, frozen=True, tag="probe"):
    """Ask for a sign of life of the node, whatever its workers do."""


class ProbeReply(msgspec.Struct, frozen=True, tag="probe_reply"):
    """It."""


class Delegate(msgspec.Struct, frozen=True, tag="delegate", omit_defaults=True):
    """Run this request as its coordinator. Answered with DelegatedEvents* and at last one with `finished`, or DelegationFailed.

    It ends early with CancelDelegation, and with the link.
    """

    session: _Session  # names the delegation between these two nodes
    request: GenerationRequest  # its model is a ModelId
    window: int  # messages that may be sent before more are granted
    resume: tuple[
        int, ...
    ] = ()  # tokens another coordinator had generated before it was lost; their text is not sent again
    hops: int = 1  # how often the request has been handed on
    privacy: str = "anyone"  # how far it may travel from here; see inference.privacy
    # Whom all its askers let see it, since no two need be in the same networks; None: whom the rule allows there.
    peers: Annotated[tuple[PeerId, ...], msgspec.Meta(max_length=MOST_PEERS)] | None = None


class DelegatedEvents(msgspec.Struct, frozen=True, tag="delegated_events", omit_defaults=True):
    """What became certain since the last one."""

    session: _Session
    started: Started | None = None
    delta: Delta | None = None
    finished: Finished | None = None


class GrantEvents(msgspec.Struct, frozen=True, tag="grant_events"):
    """The asker has taken messages; `count` more may be sent."""

    session: _Session
    count: int


class CancelDelegation(msgspec.Struct, frozen=True, tag="cancel_delegation"):
    """Nobody waits for this delegation any more."""

    session: _Session


class DelegationFailed(msgspec.Struct, frozen=True, tag="delegation_failed"):
    """The coordinator could not finish it."""

    session: _Session
    code: str
    message: str


StageMessage = (
    OpenStage
    | StageOpened
    | JoinRing
    | RingJoined
    | TurnRing
    | StageStepMessage
    | Acknowledged
    | Answered
    | StageFailed
    | CloseStage
    | Probe
    | ProbeReply
    | Delegate
    | DelegatedEvents
    | GrantEvents
    | CancelDelegation
    | DelegationFailed
    | Failed
)
