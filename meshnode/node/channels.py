"""Every channel of the node, with its size and the reason for it. They outlive the subsystems at their ends."""

import attrs

from meshnode.files.acquisitions import AcquireModel, AcquisitionProgress, RemoveModel
from meshnode.flow.latest import Latest
from meshnode.flow.mailbox import Mailbox
from meshnode.inference.calls import GenerationCall
from meshnode.inference.models import LoadedModel
from meshnode.network.stage_links import Received
from meshnode.node.model_keeper import Intent
from meshnode.types.ids import ModelId
from meshnode.types.manifest import ModelManifest

__all__ = ["Channels"]


@attrs.frozen(eq=False)
class Channels:
    """Who talks to whom. The events of one generation have a channel of their own, of inference.calls.EVENT_BUFFER."""

    generations: Mailbox[GenerationCall, None] = attrs.field(
        # ApiServer -> InferenceRouter, 0: the handler waits; admission and refusal are the queue's, not a buffer's
        factory=lambda: Mailbox("InferenceRouter", 0)
    )
    acquisitions: Mailbox[AcquireModel | RemoveModel, ModelManifest] = attrs.field(
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
    wanted: Latest[frozenset[ModelId]] = attrs.field(
        factory=lambda: Latest(
            frozenset()
        )  # ModelKeeper, and the router for what it loads on demand -> InferenceRouter
    )
    loaded: Latest[dict[ModelId, LoadedModel]] = attrs.field(
        factory=lambda: Latest({})  # InferenceRouter -> model list and status
    )
