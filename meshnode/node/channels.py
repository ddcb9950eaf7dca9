"""Every channel of the node, with its size and the reason for it. They outlive the subsystems at their ends."""

from collections.abc import Mapping

import attrs

from meshnode.files.acquisitions import AcquisitionProgress, Question
from meshnode.files.hub_trust import Standing
from meshnode.flow.broadcast import Broadcast
from meshnode.flow.latest import Latest
from meshnode.flow.mailbox import Mailbox
from meshnode.health.monitor import MembershipEvent
from meshnode.inference.calls import GenerationCall
from meshnode.inference.models import LoadedModel
from meshnode.network.manager import DialRequest
from meshnode.network.stage_links import AnyReceived, ControlReceived, Received
from meshnode.node.model_keeper import Intent
from meshnode.placement.ports import Entrusted
from meshnode.placement.wishlist import Wishlist
from meshnode.types.blocks import BlockRange
from meshnode.types.evidence import Evidence
from meshnode.types.ids import ModelId, PeerId
from meshnode.types.manifest import ModelManifest
from meshnode.types.peers import Offering, Room
from meshnode.update.checker import UpdateQuestion, UpdateState

__all__ = ["Channels"]


@attrs.frozen(eq=False)
class Channels:
    """Who talks to whom. The events of one generation have a channel of their own, of inference.calls.EVENT_BUFFER."""

    generations: Mailbox[GenerationCall, None] = attrs.field(
        # ApiServer -> InferenceRouter, 0: the handler waits; admission and refusal are the queue's, not a buffer's
        factory=lambda: Mailbox("InferenceRouter", 0)
    )
    acquisitions: Mailbox[Question, ModelManifest] = attrs.field(
        # ApiServer, ModelKeeper -> AcquisitionManager, 16: a restart of it costs callers no more than the wait
        factory=lambda: Mailbox("AcquisitionManager", 16)
    )
    progress: Latest[tuple[AcquisitionProgress, ...]] = attrs.field(
        factory=lambda: Latest(())  # AcquisitionManager -> status and log: the newest is all that matters
    )
    intent: Latest[Intent] = attrs.field(
        factory=lambda: Latest(Intent())  # ModelKeeper -> readiness
    )
    stage_messages: Mailbox[Received, None] = attrs.field(
        # MessageDispatcher, and ourselves -> InferenceRouter, 64: beyond it the reader of the peer's link waits
        factory=lambda: Mailbox("InferenceRouter stages", 64)
    )
    inbound: Mailbox[AnyReceived, None] = attrs.field(
        # the control links of all peers -> MessageDispatcher, 256: then the reader of a link waits, and its peer with it
        factory=lambda: Mailbox("MessageDispatcher", 256)
    )
    inbound_stages: Mailbox[AnyReceived, None] = attrs.field(
        # the stage links of all peers -> MessageDispatcher, 256: apart, so that neither kind waits for the other
        factory=lambda: Mailbox("MessageDispatcher stages", 256)
    )
    control_messages: Mailbox[ControlReceived, None] = attrs.field(
        # MessageDispatcher -> NetworkManager, 64: gossip comes in batches
        factory=lambda: Mailbox("NetworkManager messages", 64)
    )
    dials: Mailbox[DialRequest, PeerId] = attrs.field(
        # ApiServer -> NetworkManager, 0: the asker waits under its own deadline
        factory=lambda: Mailbox("NetworkManager", 0)
    )
    evidence: Mailbox[Evidence, None] = attrs.field(
        # MessageDispatcher, NetworkManager -> HealthMonitor, 64: more is dropped, there is enough against somebody
        factory=lambda: Mailbox("HealthMonitor", 64)
    )
    failures: Latest[Mapping[PeerId, int]] = attrs.field(
        factory=lambda: Latest({})  # HealthMonitor -> PeerTable: weight of the evidence per peer
    )
    membership: Broadcast[MembershipEvent] = attrs.field(
        factory=lambda: Broadcast("membership")  # HealthMonitor -> whoever cares who comes and goes
    )
    offering: Latest[Offering] = attrs.field(
        factory=lambda: Latest(Offering())  # InferenceRouter -> NetworkManager: what we tell others
    )
    listening: Latest[tuple[str, ...]] = attrs.field(
        factory=lambda: Latest(())  # NetworkManager -> status and invitations: our multiaddrs
    )
    room: Latest[Room | None] = attrs.field(
        factory=lambda: Latest(None)  # AutoShardManager -> NetworkManager: what we tell of our room and our demand
    )
    hosted: Latest[frozenset[ModelId]] = attrs.field(
        factory=lambda: Latest(frozenset())  # AutoShardManager -> ModelKeeper: models held of the node's own accord
    )
    leaving: Latest[tuple[ModelId, BlockRange] | None] = attrs.field(
        factory=lambda: Latest(None)  # AutoShardManager -> NetworkManager: what it is about to let go
    )
    wishes: Latest[Wishlist] = attrs.field(
        factory=lambda: Latest(Wishlist())  # AutoShardManager -> wishlist
    )
    trending: Latest[tuple[Standing, ...]] = attrs.field(
        factory=lambda: Latest(())  # HfWatcher -> wishlist
    )
    entrusted: Mailbox[Entrusted, None] = attrs.field(
        # bulk connections of peers -> AutoShardManager, 0: they wait, and their peers hear that they do
        factory=lambda: Mailbox("AutoShardManager", 0)
    )
    rebalance: Latest[int] = attrs.field(
        factory=lambda: Latest(0)  # ShardRebalancer -> AutoShardManager: how often members have come or gone for good
    )
    updates: Mailbox[UpdateQuestion, UpdateState] = attrs.field(
        # ApiServer -> UpdateChecker, 4: one look at a time, and a few may wait for it
        factory=lambda: Mailbox("UpdateChecker", 4)
    )
    update_state: Latest[UpdateState] = attrs.field(
        factory=lambda: Latest(UpdateState())  # UpdateChecker -> admin API: what the last look found
    )
    wanted: Latest[frozenset[ModelId]] = attrs.field(
        factory=lambda: Latest(
            frozenset()
        )  # ModelKeeper, and the router for what it loads on demand -> InferenceRouter
    )
    loaded: Latest[dict[ModelId, LoadedModel]] = attrs.field(
        factory=lambda: Latest({})  # InferenceRouter -> model list and status
    )
