"""One or two of every message that nodes send each other: with as little in it as may be, and with everything."""

from meshnode.types.blocks import BlockRange
from meshnode.types.conversation import ChatMessage
from meshnode.types.generation import (
    Delta,
    Finished,
    FinishReason,
    GenerationRequest,
    SamplingParameters,
    Started,
    TokenEvent,
    TokenLogprob,
    Usage,
)
from meshnode.types.ids import ModelId, PeerId, RequestId, SessionId, ShardId
from meshnode.wire.bulk_messages import (
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
    Hello,
    Introduction,
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
from meshnode.wire.failures import Failed
from meshnode.wire.protocols import BULK_MESSAGES, CONTROL_MESSAGES, STAGE_MESSAGES
from meshnode.wire.ring_messages import RING_MESSAGES, Attach, Attached, Detach, Lap, RingDoor
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
    StageOpened,
    StageStepMessage,
    TurnRing,
)

__all__ = ["EXAMPLES", "SETS"]

_A = PeerId("12D3KooWA1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1")
_B = PeerId("12D3KooWB2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2")
_S = SessionId("0123456789abcdef01234567")
_M = ModelId("5e" * 32)
_RECORD = SignedRecord(_A, b"what I can run", bytes(range(64)))
_SAMPLING = SamplingParameters(0.8, 0.95, 40, 0.05, 7, 0.5, -0.5, ((5, -100.0), (9, 1.5)), 3)
_TOKEN = TokenEvent(4711, -0.25, ((4711, -0.25), (3, -2.5)))
_LOGPROB = TokenLogprob("é", -0.5, "é".encode(), (TokenLogprob("e", -1.5, b"e"),))

_DOOR = RingDoor(("192.0.2.7", "2001:db8::7"), 4003, bytes(range(32)), bytes(range(32, 64)))

SETS = {"control": CONTROL_MESSAGES, "stage": STAGE_MESSAGES, "bulk": BULK_MESSAGES, "ring": RING_MESSAGES}

_EVERYWHERE = {
    "hello": Hello(1, 2, 7, bytes(range(32)), "0.1.0", 1_700_000_000.5),
    "ping": Ping(3),
    "pong": Pong(2**64 - 1),
    "failed": Failed("overloaded", "too much to do; come back in a second"),
}
_CONTROL = {
    "ping_with_digest": Ping(3, 2**64 - 1),
    "pong_with_digest": Pong(4, 0),
    "hello_for_route": Hello(1, 2, 7, bytes(range(32)), "0.1.0", 1_700_000_000.5, True),
    "records": Records((_RECORD, _RECORD)),
    "records_none": Records(()),
    "record": _RECORD,
    "introductions_wanted": IntroductionsWanted(16),
    "introductions": Introductions(
        (Introduction(_B, ("/ip4/192.0.2.7/tcp/4001", "/ip6/2001:db8::7/tcp/4001")), Introduction(_A, ()))
    ),
    "ticket_request": TicketRequest("activations"),
    "ticket": Ticket(("192.0.2.7", "2001:db8::7"), 4002, bytes(range(32, 64)), bytes(range(64, 96)), 30.0),
    "kept_wanted": KeptWanted(_M, 8, 12),
    "kept": Kept(True),
}
_STAGE = {
    "open_stage": OpenStage(_S, 1, _M, 0, BlockRange(0, 15), True, False, 2048, _A, _B),
    "open_stage_head": OpenStage(_S, 2, _M, 3, None, False, True, 2048, _B, None, 12, (1, 2, 70_000), _SAMPLING),
    "open_stage_pages": OpenStage(
        _S, 1, _M, 0, BlockRange(0, 15), True, False, 2048, _A, _B, pages=(bytes(32), bytes(range(32)))
    ),
    "stage_opened": StageOpened(1024),
    "stage_opened_door": StageOpened(1024, _DOOR),
    "join_ring": JoinRing(_S, 1, 2, _DOOR, False),
    "ring_joined": RingJoined(_S, 1, 2),
    "turn_ring": TurnRing(_S, 1, 104),
    "step_ring": StageStepMessage(_S, 1, 0, 17, 40, 1, True, until=104),
    "step": StageStepMessage(_S, 1, 2, 17, 40, 1),
    "step_prompt": StageStepMessage(_S, 2, 0, 1, 0, 512, True, (0, 512)),
    "acknowledged": Acknowledged(_S, 1, 17, 2),
    "answered": Answered(_S, 1, 17, 40),
    "answered_token": Answered(_S, 1, 17, 40, _TOKEN),
    "stage_failed": StageFailed(_S, 1, 2, "out_of_memory", "no room for 2048 positions"),
    "stage_failed_blames": StageFailed(_S, 1, 2, "peer_unreachable", "the next stage is gone", _B),
    "close_stage": CloseStage(_S, 3),
    "probe": Probe(),
    "probe_reply": ProbeReply(),
    "delegate": Delegate(_S, GenerationRequest(RequestId("ab" * 12), _M, prompt="Hello"), 64),
    "delegate_all": Delegate(
        _S,
        GenerationRequest(
            RequestId("ab" * 12), _M, (ChatMessage("user", "Grüß Gott", "ada"),), None, _SAMPLING, 100, ("\n",), "key"
        ),
        64,
        (5, 6, 7),
        2,
    ),
    "delegate_among": Delegate(
        _S,
        GenerationRequest(RequestId("ab" * 12), _M, prompt="Hello"),
        64,
        privacy="pool_and_lan",
        peers=(_A, _B),
    ),
    "delegated_events": DelegatedEvents(_S, delta=Delta("é", (_LOGPROB,), (4711,))),
    "delegated_events_all": DelegatedEvents(
        _S,
        Started("tiny", 12, "A 0:15 > B 15:30"),
        Delta("x"),
        Finished(FinishReason.LENGTH, Usage(12, 100, 3), "\n", "A 0:30", 1, 0.75),
    ),
    "grant_events": GrantEvents(_S, 16),
    "cancel_delegation": CancelDelegation(_S),
    "delegation_failed": DelegationFailed(_S, "no_route", "nobody holds blocks 15:30"),
}
_BULK = {
    "manifest_wanted": ManifestWanted(_M),
    "manifest": ManifestGiven(),
    "chunks_wanted": ChunksWanted(ShardId("cd" * 32), 8, 4),
    "chunk": Chunk(8),
    "share_wanted": ShareWanted(),
    "share_progress": ShareProgress(5, 1 << 40),
    "share_made": ShareMade(),
    "keep_share": KeepShare(_M, 7, 15, 30),
    "share_kept": ShareKept(),
    "failed": Failed("unavailable", "it is not here"),
}
_RING = {
    "attach": Attach(3, bytes(range(32))),
    "attached": Attached(3),
    "detach": Detach(3),
    "lap": Lap(3, 17, 40),
    "lap_token": Lap(3, 18, 41, _TOKEN),
}
_BODIES = {
    "manifest": b"\x80",
    "chunk": bytes(range(64)),
    "share_wanted": b"\x80",
    "share_made": b"\x90",
    "step": b"\x80\x3f" * 8,
    "step_prompt": bytes(range(64)),
    "step_ring": bytes(4),
    "lap": b"\x80\x3f" * 8,
}

EXAMPLES = {
    f"{name}/{key}": (messages, message, _BODIES.get(key, b""))
    for name, messages, own in (("control", CONTROL_MESSAGES, _CONTROL), ("stage", STAGE_MESSAGES, _STAGE))
    for key, message in {**_EVERYWHERE, **own}.items()
}
EXAMPLES |= {
    f"{name}/{key}": (messages, message, _BODIES.get(key, b""))
    for name, messages, own in (("bulk", BULK_MESSAGES, _BULK), ("ring", RING_MESSAGES, _RING))
    for key, message in own.items()
}
"""(its protocol, the message, its body) by name."""
