"""Runs one request to its end: here as the coordinator of its session, or through the node that coordinates it best."""

from collections.abc import Mapping

import attrs
import trio

from meshnode.errors import NoRoute, RequestError, SessionLost, Unavailable, UnknownModel
from meshnode.flow.lanes import Lanes
from meshnode.flow.rates import FadingRates
from meshnode.inference.answer import Answer
from meshnode.inference.assets import ModelAssets, Prompt
from meshnode.inference.calls import Delegated, GenerationCall
from meshnode.inference.coordination import Coordinator
from meshnode.inference.delegation import Delegations
from meshnode.inference.losses import StageLost
from meshnode.inference.model_loading import ModelLoader
from meshnode.inference.models import LoadedModel
from meshnode.inference.planner import RouteRequest
from meshnode.inference.recent_routes import beginnings_of
from meshnode.inference.reply import Reply
from meshnode.inference.request_record import RequestRecord
from meshnode.inference.route_finder import Bar
from meshnode.inference.session import Session
from meshnode.inference.targets import Target, model_here, model_of_peers
from meshnode.types.generation import (
    Finished,
    FinishReason,
    GenerationRequest,
    SamplingParameters,
    Started,
    TokenEvent,
    Usage,
)
from meshnode.types.ids import ModelId, PeerId
from meshnode.types.manifest import ModelConfig, ModelManifest
from meshnode.types.model_names import AUTO, meant_by
from meshnode.types.routes import Route

__all__ = ["RequestRunner"]

_EXPECTED_ANSWER = 256  # tokens, when the request does not say
_BYTES_PER_TOKEN = 3  # guess, to ask for enough memory where there is no tokenizer
_MAX_HOPS = 2
_MOST_SCORES = 10_000  # log-probabilities of a prompt, each some fifty bytes: they come in one frame
_NO_CONTEXT = 1 << 40  # tokens, more than any prompt has


@attrs.frozen(eq=False)
class RequestRunner:
    """What requests share."""

    loader: ModelLoader
    coordinator: Coordinator
    delegations: Delegations
    lanes: Lanes
    demand: FadingRates[ModelId]
    aliases: Mapping[str, str] = attrs.field(factory=dict)  # the settings': name -> name

    async def prepare(self, call: GenerationCall) -> None:
        """Have the model loaded, what is here of it and the rest elsewhere: not on a turn that a request for another could have.

        Raises UnknownModel, Unavailable when it cannot be loaded here, and NoRoute.
        """
        target = self._resolve(call.request)
        model = await self._loaded(target)
        if model is None or not (model.is_whole or call.request.only_counts):
            rule, named = call.delegated.privacy, call.delegated.peers
            wish = RouteRequest(target.id, target.block_count, tokens=1, privacy=rule, peers=named)
            patience = self.coordinator.patience
            await self.coordinator.finder.line_up(wish, patience.first_route, patience.loading)

    async def run(self, call: GenerationCall, record: RequestRecord) -> None:
        """Generate. Cancellation frees everything, on every node.

        Raises InferenceError, RequestError and EngineError leafs, and UnsupportedModel.
        """
        target = self._resolve(call.request)
        if call.delegated.hops == 0:  # others count their own
            self.demand.note(target.id)
        model = await self._loaded(target)
        resume = list(call.delegated.resume)
        reply = Reply(call, record, resume, owes_echo=call.request.echo and not resume)
        if model is None or model.assets is None:
            if await self._delegate(reply, target, self._guess(call, target)):
                raise Unavailable(f"{target.name} has just come to this node; try again")
            return
        if call.request.only_counts:
            await self._count(reply, target, model.assets)
            return
        config = model.manifest.config
        _check_purpose(call.request, model.manifest)
        _check_biases(call.request, config.vocabulary_size)
        context = min(model.spec.context_length, target.context_length)
        prompt = await self.lanes.run("template", model.assets.prompt, call.request, context)
        room = context - len(prompt.tokens)
        limit = room if call.request.max_tokens is None else min(room, call.request.max_tokens)
        sampling = _read_for(call.request, prompt, config)
        wish = RouteRequest(
            model=target.id,
            block_count=target.block_count,
            tokens=len(prompt.tokens) + limit,
            prompt_tokens=len(prompt.tokens),
            answer_tokens=min(limit, _EXPECTED_ANSWER),
            privacy=call.delegated.privacy,
            peers=call.delegated.peers,
            beginnings=beginnings_of(target.id, call.request, call.request.client if call.delegated.hops else ""),
        )
        if call.delegated.hops == 0:
            best = await self.coordinator.finder.wait(wish, {}, frozenset(), self.coordinator.patience.first_route)
            if best.coordinator != self.coordinator.own and not await self._delegate(reply, target, wish):
                return
        tokenizer = model.assets.tokenizer
        session = Session(
            prompt.tokens,
            1 if call.request.embeds else max(limit, 1 if sampling.scored else 0),
            sampling,
            tokenizer.end_tokens,
            list(reply.tokens),
            config.vocabulary_size,
            asker=call.request.client if call.delegated.hops else "",
            in_one_step=not config.causal,
        )
        answer = Answer(tokenizer, len(prompt.tokens), prompt.form)
        await self._coordinate(reply, target.name, session, wish, answer)

    # Here

    async def _count(self, reply: "Reply", target: Target, assets: ModelAssets) -> None:
        """Say how long the prompt is, even one that no context has room for; no route is needed."""
        prompt = await self.lanes.run("template", assets.prompt, reply.call.request, _NO_CONTEXT)
        count = len(prompt.tokens)
        await reply.take(started=Started(target.name, count, ""))
        await reply.take(finished=Finished(FinishReason.LENGTH, Usage(count, 0)))

    async def _coordinate(
        self, reply: "Reply", name: str, session: Session, wish: RouteRequest, answer: Answer
    ) -> None:
        answer.resume(session.generated)
        route = await self._first_route(wish)
        await reply.take(started=Started(name, len(session.prompt), self._describe(route)))
        if reply.owes_echo and not session.sampling.scored:
            await reply.take(delta=answer.echo(session.prompt, None))

        async def take(event: TokenEvent) -> bool:
            if reply.owes_echo:
                await reply.take(delta=answer.echo(session.prompt, event.prompt))
                if reply.call.request.max_tokens == 0:
                    return False
            reply.record.tokens_came(0 if event.vector or event.token in session.end_tokens else 1)
            delta = answer.push(event)
            if delta is not None:
                await reply.take(delta=delta)
            return not answer.is_done

        if not answer.is_done:
            await self.coordinator.run(session, wish, take, route)
            if session.route is not None:
                self.coordinator.finder.remember(wish, session.route)
        rest, finished = answer.ending()
        usage = attrs.evolve(finished.usage, cached_tokens=session.cached_tokens or 0)
        finished = attrs.evolve(finished, usage=usage)
        if rest is not None:
            await reply.take(delta=rest)
        if session.recoveries and session.route is not None:
            route_now = self._describe(session.route)
            finished = attrs.evolve(
                finished, route=route_now, recoveries=session.recoveries, pause=round(session.pause, 3)
            )
        await reply.take(finished=finished)

    async def _first_route(self, wish: RouteRequest) -> Route:
        """Plan with the first stage here, if there is such a route."""
        finder, patience = self.coordinator.finder, self.coordinator.patience
        try:
            return finder.plan(attrs.evolve(wish, coordinator=self.coordinator.own))
        except NoRoute:
            return await finder.wait(wish, {}, frozenset(), patience.first_route)

    def _describe(self, route: Route) -> str:
        if route.peers == {self.coordinator.own} and len(route.stages) == 1:
            return f"local {route.stages[0].blocks}"
        return f"{route} ({route.reason})" if route.reason else str(route)

    # Elsewhere

    async def _delegate(self, reply: "Reply", target: Target, wish: RouteRequest) -> bool:
        """Have others coordinate until one finishes; return whether this node should go on instead.

        Raises NoRoute when nobody can, SessionLost after too many losses.
        """
        call = reply.call
        if call.delegated.hops >= _MAX_HOPS:
            raise NoRoute(
                f"{target.name}: the request has been handed on {_MAX_HOPS} times; nobody near can coordinate it"
            )
        finder, patience = self.coordinator.finder, self.coordinator.patience
        lost: dict[PeerId, Bar] = {}
        busy: frozenset[PeerId] = frozenset()
        while not reply.is_over:
            waits = patience.new_route if reply.losses else patience.first_route
            loading = patience.loading if reply.losses else 0.0
            try:
                route = await finder.wait(wish, lost, busy, waits, loading)
            except NoRoute:
                if not busy:
                    raise
                busy = frozenset()
                await trio.sleep(patience.busy)
                continue
            peer = route.coordinator
            if peer == self.coordinator.own:
                return True
            try:
                rule, named = finder.rule(wish), finder.named(wish)
                onward = Delegated(tuple(reply.tokens), call.delegated.hops + 1, rule, named)
                request = attrs.evolve(call.request, echo=reply.owes_echo)
                async with self.delegations.open(peer, target.id, request, onward) as events:
                    async for event in events:
                        if event.delta is not None:
                            reply.record.tokens_came(len(event.delta.tokens))
                        await reply.take(event.started, event.delta, event.finished)
                finder.remember(wish, route)
            except StageLost as error:
                if error.busy:
                    busy |= {peer}
                    continue
                lost[peer] = Bar.after(lost.get(peer), finder.sequence(peer), for_good=error.misdeed is not None)
                finder.shun(peer, lost[peer].sequence)
                reply.lost()
                if reply.losses_in_a_row > patience.losses_in_a_row:
                    raise SessionLost(f"{reply.losses_in_a_row} coordinators were lost at the same token") from error
        return False

    def _guess(self, call: GenerationCall, target: Target) -> RouteRequest:
        """Say what a request needs, without its tokens."""
        request = call.request
        nbytes = sum(len(message.content) for message in request.messages) + len(request.prompt or "")
        prompt = 1 + nbytes // _BYTES_PER_TOKEN
        answer = request.max_tokens or _EXPECTED_ANSWER
        tokens = min(target.context_length, prompt + answer)
        return RouteRequest(
            target.id,
            target.block_count,
            tokens,
            prompt,
            min(answer, _EXPECTED_ANSWER),
            privacy=call.delegated.privacy,
            peers=call.delegated.peers,
            beginnings=beginnings_of(target.id, request),
        )

    # Models

    async def _loaded(self, target: Target) -> LoadedModel | None:
        """Return the model if shards of its weights are here, loading it if need be."""
        if target.manifest is None:
            return None
        try:
            return await self.loader.load(target.manifest)
        except NoRoute:
            return None

    def _resolve(self, request: GenerationRequest) -> Target:
        """Find a model here, or among those of peers; `auto` is one that can do what is asked for. Raises UnknownModel."""
        name, embeds = meant_by(request.model, self.aliases), request.embeds
        manifest = self.loader.any_loaded(embeds=embeds) if name == AUTO else None
        if manifest is None:
            try:
                manifest = self.loader.tables.catalog.resolve(name)
            except UnknownModel as error:
                try:
                    return model_of_peers(name, self.coordinator.finder.mesh.peers(), error, embeds=embeds)
                except UnknownModel:
                    manifest = self.loader.any_whole(embeds=embeds) if name == AUTO else None
                    if manifest is None:
                        raise
        return model_here(manifest)


def _check_purpose(request: GenerationRequest, model: ModelManifest) -> None:
    if not (request.embeds or model.config.causal):
        raise RequestError(
            f"{model.name} makes vectors of texts and writes none itself; use /v1/embeddings, or another model",
            param="model",
        )


def _read_for(request: GenerationRequest, prompt: Prompt, config: ModelConfig) -> SamplingParameters:
    """Add what is to be read of the prompt. Raises RequestError when that is more than one answer can carry."""
    sampling, count = prompt.sampling, len(prompt.tokens)
    if request.embeds:
        return attrs.evolve(sampling, pooling=config.pooling or "mean")
    if not request.echo or sampling.top_logprobs is None:
        return sampling
    if count * (1 + sampling.top_logprobs) > _MOST_SCORES:
        raise RequestError(
            f"{1 + sampling.top_logprobs} log-probabilities for each of {count} tokens of the prompt are too many; "
            f"{_MOST_SCORES} are allowed",
            param="logprobs",
        )
    return attrs.evolve(sampling, scored=prompt.tokens)


def _check_biases(request: GenerationRequest, vocabulary: int) -> None:
    beyond = [token for token, _ in request.sampling.logit_bias if token >= vocabulary]
    if beyond:
        raise RequestError(
            f"'logit_bias' names token {beyond[0]}; the model's tokens are 0 to {vocabulary - 1}", param="logit_bias"
        )
