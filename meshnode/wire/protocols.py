"""The languages of links: which messages each has, and how large their frames may be.

The numbers are part of the wire format. A new kind of message joins an existing type of frame, or gets a new number.
"""

import msgspec

from meshnode.wire.bulk_messages import (
    BulkMessage,
    Chunk,
    ChunksWanted,
    KeepShare,
    ManifestGiven,
    ManifestWanted,
    ShareKept,
    ShareMade,
    ShareProgress,
    ShareWanted,
)
from meshnode.wire.control_messages import (
    ControlMessage,
    Hello,
    Introductions,
    IntroductionsWanted,
    Kept,
    KeptWanted,
    Ping,
    Pong,
    Records,
    SignedRecord,
    Ticket,
    TicketRequest,
)
from meshnode.wire.envelopes import FrameType, MessageSet
from meshnode.wire.failures import Failed
from meshnode.wire.stage_messages import (
    Acknowledged,
    Answered,
    CancelDelegation,
    CloseStage,
    Delegate,
    DelegatedEvents,
    DelegationFailed,
    GrantEvents,
    JoinRing,
    OpenStage,
    Probe,
    ProbeReply,
    RingJoined,
    StageFailed,
    StageMessage,
    StageOpened,
    StageStepMessage,
    TurnRing,
)
from meshnode.wire.versions import Feature

__all__ = ["BULK_MESSAGES", "CONTROL_MESSAGES", "STAGE_MESSAGES", "feature_of"]

_LINK = FrameType(1, 16 << 10)  # the longest is a failure's sentence: 2000 characters
_GOSSIP = FrameType(2, 64 << 10)
_STAGE = FrameType(4, 1 << 20)
_PROMPT = FrameType(5, 16 << 20)  # a conversation, or about three million tokens
_STEP = FrameType(6, 64 << 20, has_body=True)  # 2048 rows of 16,384 bfloat16
_CHUNK = FrameType(7, (1 << 20) + 256, has_body=True)
_MANIFEST = FrameType(8, 64 << 20, has_body=True)  # the chunks of some 800 GB

CONTROL_MESSAGES: MessageSet[ControlMessage] = MessageSet(
    {
        _LINK: (Hello, Ping, Pong, Failed, IntroductionsWanted, TicketRequest, Ticket, KeptWanted, Kept),
        _GOSSIP: (SignedRecord, Records, Introductions),
    }
)
STAGE_MESSAGES: MessageSet[StageMessage] = MessageSet(
    {
        _LINK: (Hello, Ping, Pong, Failed, StageOpened, Acknowledged, StageFailed, CloseStage, Probe, ProbeReply,
                GrantEvents, CancelDelegation, DelegationFailed, JoinRing, RingJoined, TurnRing),
        _STAGE: (Answered, DelegatedEvents),
        _PROMPT: (OpenStage, Delegate),
        _STEP: (StageStepMessage,),
    }
)  # fmt: skip
BULK_MESSAGES: MessageSet[BulkMessage] = MessageSet(
    {
        _LINK: (ManifestWanted, ChunksWanted, Failed, ShareProgress, KeepShare, ShareKept),
        _CHUNK: (Chunk,),
        _MANIFEST: (ManifestGiven, ShareWanted, ShareMade),
    }
)

_OPTIONAL: dict[type[msgspec.Struct], Feature] = {
    TicketRequest: Feature.DATA_PLANE,
    IntroductionsWanted: Feature.INTRODUCTIONS,
    Introductions: Feature.INTRODUCTIONS,
    Delegate: Feature.DELEGATION,
    KeptWanted: Feature.KEPT,
    Kept: Feature.KEPT,
    JoinRing: Feature.RINGS,
    RingJoined: Feature.RINGS,
    TurnRing: Feature.RINGS,
}


def feature_of(message: msgspec.Struct) -> Feature:
    """Return the feature that both sides need for a message to be sent, Feature(0) if none."""
    if isinstance(message, Delegate) and message.peers is not None:
        return Feature.DELEGATION | Feature.NAMED_PEERS  # who does not know the field would ask whom it likes
    return _OPTIONAL.get(type(message), _NONE)


_NONE = Feature(0)
