"""The InferenceRouter: admits generations, runs each over this node and its peers, and runs stages for others.

A call comes through the mailbox, waits for its turn in the queue, and is run by the RequestRunner. Stage messages of peers
come through a mailbox of their own and are handed to the task they are for.
"""

from collections.abc import Mapping
from functools import partial

import attrs
import structlog
import trio

from meshnode.errors import DeadlineExceeded, MeshnodeError, Overloaded, Unavailable
from meshnode.flow.lanes import Lanes
from meshnode.flow.latest import Latest
from meshnode.flow.mailbox import Mailbox
from meshnode.flow.rates import FadingRates
from meshnode.inference.calls import GenerationCall, open_generations
from meshnode.inference.coordination import Coordinator, Patience
from meshnode.inference.delegate_server import DelegateServer
from meshnode.inference.delegation import Delegations
from meshnode.inference.model_loading import ModelLoader, ModelTables
from meshnode.inference.models import EngineSettings
from meshnode.inference.offering import keep_offering
from meshnode.inference.own_stages import own_stages, own_stages_for_us
from meshnode.inference.ports import BuildExecutor, MeshView
from meshnode.inference.privacy import Privacy
from meshnode.inference.queue import FairQueue
from meshnode.inference.request_record import RequestRecord
from meshnode.inference.request_runner import RequestRunner
from meshnode.inference.route_finder import RouteFinder
from meshnode.inference.stage_inbox import StageInbox
from meshnode.inference.stage_server import StageServer
from meshnode.network.stage_links import Received, StageLinks
from meshnode.observe.metrics import Metrics
from meshnode.supervise.health import HealthBoard
from meshnode.supervise.subsystem import Pulse
from meshnode.types.evidence import Evidence
from meshnode.types.ids import ModelId, PeerId
from meshnode.types.peers import Offering

__all__ = ["InferenceRouter", "MeshAccess", "RouterResources", "RouterSettings"]

_log = structlog.get_logger(__name__)


@attrs.frozen
class RouterSettings:
    """Admission, engine and route settings."""

    engine: EngineSettings
    queue_length: int
    max_concurrent: int
    request_timeout: float  # seconds from admission to end
    prefill_chunk: int = 512  # rows of a prompt per step through several stages
    max_stages: int = 64  # hosted at once
    privacy: Privacy = Privacy.ANYONE
    boomerang: bool = False
    aliases: Mapping[str, str] = attrs.field(factory=dict)  # name -> name
    patience: Patience = attrs.field(factory=Patience)


@attrs.frozen(eq=False)
class MeshAccess:
    """How the router meets other nodes; a node without a network has no peers and a loop to itself."""

    own: PeerId
    peers: MeshView
    links: StageLinks
    received: Mailbox[Received, None]
    offering: Latest[Offering]  # written by the router alone
    evidence: Mailbox[Evidence, None] = attrs.field(factory=lambda: Mailbox("evidence", 64))  # to the HealthMonitor


@attrs.frozen(eq=False)
class RouterResources:
    """What outlives an incarnation of the router."""

    mailbox: Mailbox[GenerationCall, None]
    models: ModelTables
    mesh: MeshAccess
    lanes: Lanes
    metrics: Metrics
    health: HealthBoard
    demand: FadingRates[ModelId] = attrs.field(factory=FadingRates)  # requests of this node's own callers


class InferenceRouter:
    """One incarnation."""

    def __init__(
        self, resources: RouterResources, settings: RouterSettings, build_executor: BuildExecutor, pulse: Pulse
    ) -> None:
        self._resources = resources
        self._settings = settings
        self._build_executor = build_executor
        self._pulse = pulse
        self._queue = FairQueue(settings.max_concurrent, settings.queue_length)
        self._draining = False
        self._in_hand = 0
        self._idle = trio.Event()
        resources.metrics.inference_queue_length.set_function(lambda: self._queue.waiting)
        resources.metrics.inference_active_sessions.set_function(lambda: self._queue.active)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve calls and stages until cancelled; then every session ends and every worker stops."""
        shared = self._resources
        try:
            async with trio.open_nursery() as nursery:
                loader = self._loader(nursery)
                runner, inbox = self._assemble(loader, nursery)
                nursery.start_soon(loader.run)
                nursery.start_soon(self._take_stage_messages, inbox)
                nursery.start_soon(
                    keep_offering, partial(own_stages, shared.models.loaded), inbox.stages, shared.mesh.offering
                )
                with shared.mailbox.serve() as letters:
                    task_status.started()
                    while True:
                        self._pulse.touch()
                        with trio.move_on_after(1):
                            letter = await anext(letters)
                            self._in_hand += 1
                            nursery.start_soon(self._handle, runner, letter.question)
        finally:
            shared.models.loaded.set({})

    async def drain(self) -> None:
        """Refuse new calls and wait for those in hand."""
        self._draining = True
        while self._in_hand:
            self._idle = trio.Event()
            await self._idle.wait()

    def _loader(self, nursery: trio.Nursery) -> ModelLoader:
        shared = self._resources
        engine = self._settings.engine
        return ModelLoader(shared.models, engine, self._build_executor, shared.lanes, shared.health, nursery)

    def _assemble(self, loader: ModelLoader, nursery: trio.Nursery) -> tuple[RequestRunner, StageInbox]:
        shared, settings = self._resources, self._settings
        mesh = shared.mesh
        stages = partial(own_stages_for_us, shared.models.loaded)
        finder = RouteFinder(mesh.own, mesh.peers, stages, settings.privacy, settings.boomerang)
        coordinator = Coordinator(
            finder,
            mesh.links,
            loader.ready,
            loader.is_wanted,
            settings.prefill_chunk,
            settings.patience,
            self._report,
        )
        delegations = Delegations(mesh.links)
        runner = RequestRunner(loader, coordinator, delegations, shared.lanes, shared.demand, settings.aliases)
        hosted = StageServer(mesh.links, loader.ready, settings.max_stages, nursery, self._report)
        delegates = DelegateServer(partial(open_generations, shared.mailbox), nursery)
        return runner, StageInbox(hosted, coordinator, delegations, delegates, nursery, shared.metrics)

    def _report(self, evidence: Evidence) -> None:
        """Hold something against a peer; what is wrong with our own stages is the log's."""
        mesh = self._resources.mesh
        if evidence.peer == mesh.own:
            return
        try:
            mesh.evidence.tell_nowait(evidence)
        except trio.WouldBlock:
            return  # as much is waiting already

    async def _take_stage_messages(self, inbox: StageInbox) -> None:
        def take(received: Received) -> bool:
            inbox.take(received)
            return True

        with self._resources.mesh.received.serve(at_once=take) as letters:
            async for letter in letters:
                inbox.take(letter.question)

    async def _handle(self, runner: RequestRunner, call: GenerationCall) -> None:
        """Run one call to its end; nothing it raises is the router's crash."""
        record = RequestRecord(call.request)
        try:
            async with trio.open_nursery() as own:
                own.start_soon(_cancel_when_set, call.abandoned, own.cancel_scope)
                try:
                    await self._run(runner, call, record)
                    record.outcome = "ok"
                except MeshnodeError as error:
                    record.fail(error)
                    await _send_error(call, error)
                except trio.BrokenResourceError:
                    record.outcome = "cancelled"
                except Exception as error:  # noqa: BLE001  # the request's rim: one failing request is not a crash
                    _log.error("generation failed", request=call.request.id, exc_info=error)
                    record.fail(MeshnodeError("an internal error ended this answer; the node's log has the details"))
                    await _send_error(call, record.error or MeshnodeError("unknown"))
                own.cancel_scope.cancel()
        finally:
            call.events.close()
            self._in_hand -= 1
            if not self._in_hand:
                self._idle.set()
            record.account(self._resources.metrics, for_peer=call.delegated.hops > 0)

    async def _run(self, runner: RequestRunner, call: GenerationCall, record: RequestRecord) -> None:
        if self._draining:
            raise Unavailable("this node is shutting down; try another one, or again in a moment")
        settings = self._settings
        if self._in_hand > settings.max_concurrent + settings.queue_length:
            raise Overloaded(f"{self._in_hand - 1} requests are in hand already; try again later", retry_after=5.0)
        with trio.move_on_after(settings.request_timeout) as deadline:
            await runner.prepare(call)
            if call.request.only_counts:  # no turn: nothing is computed
                await runner.run(call, record)
                return
            async with self._queue.turn(call.request.client) as idle:
                record.admitted = trio.current_time()
                await runner.run(attrs.evolve(call, lagging=partial(idle, call.request.id)), record)
        if deadline.cancelled_caught:
            raise DeadlineExceeded(f"the answer took more than {settings.request_timeout:.0f} s")


async def _cancel_when_set(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


async def _send_error(call: GenerationCall, error: MeshnodeError) -> None:
    try:
        await call.events.send((call.index, error))
    except trio.BrokenResourceError:
        return  # nobody is there to hear it
