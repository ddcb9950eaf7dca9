"""The InferenceRouter: admits generations, runs each over the worker of its model, and accounts for it."""

import attrs
import structlog
import trio

from meshnode.errors import (
    DeadlineExceeded,
    FileError,
    MeshnodeError,
    NoRoute,
    OutOfMemory,
    Overloaded,
    Unavailable,
)
from meshnode.flow.lanes import Lanes
from meshnode.flow.latest import Latest
from meshnode.flow.mailbox import Mailbox
from meshnode.inference.answer import Answer
from meshnode.inference.assets import ModelAssets
from meshnode.inference.calls import GenerationCall
from meshnode.inference.models import EngineSettings, LoadedModel, stage_spec
from meshnode.inference.ports import BuildExecutor, Catalog
from meshnode.inference.queue import FairQueue
from meshnode.inference.session import Session, Take
from meshnode.observe.metrics import Metrics
from meshnode.supervise.health import HealthBoard
from meshnode.supervise.subsystem import Pulse
from meshnode.types.generation import GenerationRequest, Started, TokenEvent
from meshnode.types.ids import ModelId
from meshnode.types.manifest import ModelManifest

__all__ = ["InferenceRouter", "RouterResources", "RouterSettings"]

_log = structlog.get_logger(__name__)


@attrs.frozen
class RouterSettings:
    """Admission and engine settings."""

    engine: EngineSettings
    queue_length: int
    max_concurrent: int
    request_timeout: float  # seconds from admission to end


@attrs.frozen(eq=False)
class RouterResources:
    """What outlives an incarnation of the router."""

    mailbox: Mailbox[GenerationCall, None]
    catalog: Catalog
    wanted: Latest[frozenset[ModelId]]  # models to keep loaded
    loaded: Latest[dict[ModelId, LoadedModel]]  # written by the router alone
    lanes: Lanes
    metrics: Metrics
    health: HealthBoard


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
        self._served: set[ModelId] = set()  # models that a task of ours serves, loaded or not
        resources.metrics.inference_queue_length.set_function(lambda: self._queue.waiting)
        resources.metrics.inference_active_sessions.set_function(lambda: self._queue.active)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve calls until cancelled; then every session ends and every worker stops."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._keep_wanted_loaded, nursery)
                with self._resources.mailbox.serve() as letters:
                    task_status.started()
                    while True:
                        self._pulse.touch()
                        with trio.move_on_after(1):
                            letter = await anext(letters)
                            self._in_hand += 1
                            nursery.start_soon(self._handle, letter.question)
        finally:
            self._resources.loaded.set({})

    async def drain(self) -> None:
        """Refuse new calls and wait for those in hand."""
        self._draining = True
        while self._in_hand:
            self._idle = trio.Event()
            await self._idle.wait()

    # Models

    async def _keep_wanted_loaded(self, nursery: trio.Nursery) -> None:
        async for wanted in self._resources.wanted.values():
            for model, loaded in list(self._resources.loaded.value.items()):
                if model not in wanted:
                    loaded.scope.cancel()
            for manifest in self._resources.catalog.manifests():
                if manifest.id in wanted and manifest.id not in self._served:
                    self._served.add(manifest.id)  # here: the task may begin after the next value has come
                    nursery.start_soon(self._serve_model, manifest)

    async def _serve_model(self, manifest: ModelManifest) -> None:
        shared, model = self._resources, None
        try:
            engine, health = self._settings.engine, shared.health
            model = LoadedModel.prepare(manifest, shared.catalog, engine, self._build_executor, health)
            path = shared.catalog.path(model.tokenizer_shard())  # type: ignore[arg-type]  # it is a ShardId
            shared.loaded.set({**shared.loaded.value, manifest.id: model})
            model.assets = await shared.lanes.run("template", ModelAssets.load, path)
            shared.health.clear_condition("model_not_loaded", manifest.name)
            await model.serve()
        except (FileError, NoRoute, OSError) as error:
            shared.health.raise_condition("model_not_loaded", manifest.name, str(error))
            _log.error("model not loaded", model=manifest.name, error=str(error))
            if model is not None:
                model.fail(str(error))
        finally:
            self._served.discard(manifest.id)
            shared.loaded.set({key: value for key, value in shared.loaded.value.items() if key != manifest.id})
            if model is not None and model.scope.cancel_called and manifest.id in shared.wanted.value:
                shared.wanted.set(shared.wanted.value)  # wanted again while it was being unloaded

    async def _model_for(self, request: GenerationRequest) -> LoadedModel:
        """Find the model, loading it if it is here and not loaded, and wait until its worker is there.

        Raises UnknownModel, NoRoute, and Unavailable when it cannot be loaded.
        """
        shared = self._resources
        if request.model == "auto" and shared.loaded.value:
            model = next(iter(shared.loaded.value.values()))
        else:
            manifest = shared.catalog.resolve(request.model)
            while manifest.id not in shared.loaded.value:
                stage_spec(manifest, shared.catalog, self._settings.engine)  # refuses at once what is not all here
                shared.wanted.set(shared.wanted.value | {manifest.id})
                await shared.loaded.changed(shared.loaded.version)
            model = shared.loaded.value[manifest.id]
        await model.ready()
        return model

    # Requests

    async def _handle(self, call: GenerationCall) -> None:
        """Run one call to its end; nothing it raises is the router's crash."""
        record = _Record(call.request)
        try:
            async with trio.open_nursery() as own:
                own.start_soon(_cancel_when_set, call.abandoned, own.cancel_scope)
                try:
                    await self._run(call, record)
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
            self._account(record)

    async def _run(self, call: GenerationCall, record: "_Record") -> None:
        if self._draining:
            raise Unavailable("this node is shutting down; try another one, or again in a moment")
        settings = self._settings
        if self._in_hand > settings.max_concurrent + settings.queue_length:
            raise Overloaded(f"{self._in_hand - 1} requests are in hand already; try again later", retry_after=5.0)
        with trio.move_on_after(settings.request_timeout) as deadline:
            await self._model_for(call.request)  # not on a turn that a request for another model could have
            async with self._queue.turn(call.request.client):
                record.admitted = trio.current_time()
                await self._generate(call, record)
        if deadline.cancelled_caught:
            raise DeadlineExceeded(f"the answer took more than {self._settings.request_timeout:.0f} s")

    async def _generate(self, call: GenerationCall, record: "_Record") -> None:
        request, shared = call.request, self._resources
        model = await self._model_for(request)
        assets = model.assets
        if assets is None:
            raise Unavailable(f"{model.manifest.name} is still being loaded; try again in a moment")
        context = model.spec.context_length
        prompt = await shared.lanes.run("template", assets.encode, request, context)
        room = context - len(prompt)
        record.model, record.prompt_tokens, record.route = model.manifest.name, len(prompt), _route(model)
        await call.events.send((call.index, Started(model.manifest.name, len(prompt), record.route)))
        answer = Answer(assets.tokenizer, len(prompt), request.stop, request.sampling.top_logprobs is not None)
        limit = room if request.max_tokens is None else min(room, request.max_tokens)
        session = Session(prompt, limit, request.sampling, assets.tokenizer.end_tokens)

        async def take(event: TokenEvent) -> bool:
            record.token_came()
            delta = answer.push(event)
            if delta is not None:
                await call.events.send((call.index, delta))
            return not answer.is_done

        try:
            with model.session():
                await self._run_session(session, model, take)
        finally:
            record.completion_tokens, record.recoveries = answer.tokens, session.recoveries
        rest, finished = answer.ending()
        record.finish_reason = finished.reason.value
        if rest is not None:
            await call.events.send((call.index, rest))
        await call.events.send((call.index, finished))

    async def _run_session(self, session: Session, model: LoadedModel, take: Take) -> None:
        """Run to the end. Memory that others hold is waited for; what does not fit alone is refused at once."""
        while True:
            departed = model.departures.version
            try:
                await session.run(model.executor, take)
            except OutOfMemory:
                if model.sessions == 1:
                    raise
                await model.departures.changed(departed)
            else:
                return

    def _account(self, record: "_Record") -> None:
        metrics, now = self._resources.metrics, trio.current_time()
        metrics.inference_requests_total.labels(outcome=record.outcome).inc()
        metrics.inference_prompt_tokens_total.inc(record.prompt_tokens)
        metrics.inference_completion_tokens_total.inc(record.completion_tokens)
        if record.admitted is not None and record.first_token is not None:
            metrics.inference_time_to_first_token_seconds.observe(record.first_token - record.admitted)
            if record.completion_tokens > 1:
                pace = (record.last_token - record.first_token) / (record.completion_tokens - 1)
                metrics.inference_time_per_output_token_seconds.observe(pace)
        _log.info("request", **record.summary(now))


def _route(model: LoadedModel) -> str:
    return f"local {model.spec.blocks}"


async def _cancel_when_set(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


async def _send_error(call: GenerationCall, error: MeshnodeError) -> None:
    try:
        await call.events.send((call.index, error))
    except trio.BrokenResourceError:
        return  # nobody is there to hear it


@attrs.define(eq=False)
class _Record:
    """What is told about one request when it is over. Times are trio.current_time()."""

    request: GenerationRequest
    arrived: float = attrs.field(factory=trio.current_time)
    outcome: str = "cancelled"
    error: MeshnodeError | None = None
    model: str = ""
    route: str = ""
    admitted: float | None = None
    first_token: float | None = None
    last_token: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    recoveries: int = 0
    finish_reason: str | None = None

    def fail(self, error: MeshnodeError) -> None:
        """Note a failure."""
        self.outcome, self.error = "error", error

    def token_came(self) -> None:
        """Note the time of a token."""
        self.last_token = trio.current_time()
        if self.first_token is None:
            self.first_token = self.last_token

    def summary(self, now: float) -> dict[str, object]:
        """Return the fields of the summary line; milliseconds where a name says ms."""
        admitted = now if self.admitted is None else self.admitted
        first = now if self.first_token is None else self.first_token
        return {
            "id": self.request.id,
            "model": self.model or self.request.model,
            "route": self.route,
            "outcome": self.outcome,
            "finish_reason": self.finish_reason,
            "error": None if self.error is None else str(self.error),
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "recoveries": self.recoveries,
            "queue_ms": round((admitted - self.arrived) * 1e3, 1),
            "first_token_ms": round((first - admitted) * 1e3, 1),
            "total_ms": round((now - self.arrived) * 1e3, 1),
        }
