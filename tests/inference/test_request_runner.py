"""One request, whoever coordinates it: what its reader sees when that changes, and whose weights a name stands for."""

from contextlib import asynccontextmanager
from types import SimpleNamespace

import attrs
import pytest
import trio

from meshnode.errors import UnknownModel
from meshnode.files.shard_file import shard_path
from meshnode.flow.lanes import Lanes
from meshnode.flow.latest import Latest
from meshnode.flow.rates import FadingRates
from meshnode.inference.assets import ModelAssets
from meshnode.inference.calls import GenerationCall
from meshnode.inference.coordination import Patience
from meshnode.inference.losses import StageLost
from meshnode.inference.model_loading import ModelLoader, ModelTables
from meshnode.inference.request_record import RequestRecord
from meshnode.inference.request_runner import RequestRunner
from meshnode.types.blocks import BlockRange
from meshnode.types.conversation import ChatMessage
from meshnode.types.generation import Delta, Finished, FinishReason, GenerationRequest, Started, TokenEvent, Usage
from meshnode.types.ids import ModelId, PeerId, RequestId
from meshnode.types.peers import Holding, Liveness, Offer, PeerInfo, StageOffer
from meshnode.types.routes import Route, Stage
from meshnode.wire.stage_messages import DelegatedEvents

OWN, OTHER = PeerId("12D3KooWownown"), PeerId("12D3KooWothers")
ANSWER = b"The sea, the sea, the open sea."


def route_from(peer):
    return Route(
        "model", (Stage(peer, BlockRange(0, 1), embedding=True), Stage(OTHER, BlockRange(1, 2), head=True)), "x"
    )


class InlineLanes(Lanes):
    async def run(self, lane, function, *args, abandon_on_cancel=False):
        await trio.lowlevel.checkpoint()
        return function(*args)


@attrs.define
class Finder:
    """Plans the routes it is told, the last one for ever."""

    best: list
    mesh: object = None
    waits: list = attrs.field(factory=list)  # (for anybody, for who loads)
    remembered: list = attrs.field(factory=list)  # (who coordinated, how many beginnings)

    def plan(self, request):
        return route_from(OWN)

    async def wait(self, request, barred, busy, patience, loading=0.0):
        self.waits.append((patience, loading))
        await trio.sleep(2)
        return route_from(self.best.pop(0) if len(self.best) > 1 else self.best[0])

    def sequence(self, peer):
        return 1

    def shun(self, peer, sequence):
        pass

    def remember(self, request, route):
        self.remembered.append((route.coordinator, len(request.beginnings)))

    def rule(self, request):
        return request.privacy

    def named(self, request):
        return request.peers


@attrs.define
class Coordinator:
    """Gives the answer from where a session is."""

    finder: Finder
    tokens: tuple
    own: PeerId = OWN
    patience: Patience = attrs.field(factory=Patience)

    async def run(self, session, wish, take, first=None):
        session.route = first
        for token in self.tokens[len(session.generated) :]:
            await trio.lowlevel.checkpoint()
            session.token_came(token)
            if session.is_complete or not await take(TokenEvent(token)):
                return


@attrs.define
class Delegations:
    """A coordinator that dies after `count` tokens."""

    tokens: tuple
    count: int
    resumed: list = attrs.field(factory=list)

    @asynccontextmanager
    async def open(self, peer, model, request, delegated):
        self.resumed.append(delegated.resume)
        yield self._events(peer)

    async def _events(self, peer):
        await trio.lowlevel.checkpoint()
        yield DelegatedEvents("s", started=Started("First", 9, "elsewhere"))
        for token in self.tokens[: self.count]:
            yield DelegatedEvents("s", delta=Delta(chr(ANSWER[self.tokens.index(token)]), (), (token,)))
        raise StageLost(peer, "its link ended")


async def run(runner, model, text="hi"):
    send, receive = trio.open_memory_channel(1000)
    request = GenerationRequest(RequestId("r"), model, (ChatMessage("user", text),), max_tokens=100)
    call = GenerationCall(request, 0, send, trio.Event())
    await runner.run(call, RequestRecord(request))
    send.close()
    return [event async for _, event in receive]


@pytest.fixture
def runner(models):
    """Return a factory of runners; `best` are the coordinators of the routes it finds, the first to see who is best."""
    folder, manifests = models
    manifest = manifests[0]
    shard = next(shard for shard in manifest.shards if shard.kind.value == "tokenizer")
    assets = ModelAssets.load(shard_path(folder, shard.id))
    tokens = (*assets.tokenizer.encode(ANSWER.decode(), add_bos=False), min(assets.tokenizer.end_tokens))
    assert len(tokens) == len(ANSWER) + 1
    loaded = SimpleNamespace(assets=assets, spec=SimpleNamespace(context_length=1024), manifest=manifest)

    def resolve(name):
        if name != manifest.name:
            raise UnknownModel(f"there is no model {name!r}")
        return manifest

    async def load(_manifest):
        await trio.lowlevel.checkpoint()
        return loaded

    loader = SimpleNamespace(tables=SimpleNamespace(catalog=SimpleNamespace(resolve=resolve)), load=load)

    def make(*best, count=12):
        coordinator = Coordinator(Finder(list(best)), tokens)
        return RequestRunner(
            loader, coordinator, Delegations(tokens, count), InlineLanes(), FadingRates()
        ), manifest.name

    return make


async def test_a_request_that_was_handed_on_comes_back_when_its_coordinator_dies(runner, autojump_clock):
    runner, name = runner(OTHER, OTHER, OWN)
    events = await run(runner, name)
    assert [type(event) for event in events].count(Started) == 1
    assert events[0].route == "elsewhere"
    assert "".join(event.text for event in events if isinstance(event, Delta)) == ANSWER.decode()
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert (finished.recoveries, finished.pause) == (1, 2.0)
    assert runner.coordinator.finder.waits == [(5.0, 0.0), (5.0, 0.0), (60.0, 30.0)]
    assert finished.route == str(route_from(OWN))
    assert finished.usage.completion_tokens == len(ANSWER)


async def test_another_coordinator_goes_on_behind_what_has_been_delivered(runner, autojump_clock):
    runner, name = runner(OTHER, OTHER, OTHER, OWN)
    events = await run(runner, name)
    assert list(map(len, runner.delegations.resumed)) == [0, 12]
    assert events[-1].recoveries == 2


async def test_who_answers_here_has_lost_nothing(runner, autojump_clock):
    runner, name = runner(OWN)
    events = await run(runner, name)
    assert events[0].route == str(route_from(OWN))
    assert "".join(event.text for event in events if isinstance(event, Delta)) == ANSWER.decode()
    assert (events[-1].recoveries, events[-1].route, events[-1].pause) == (0, "", 0.0)


async def test_who_has_read_a_text_is_remembered_by_who_coordinated_and_by_who_handed_it_on(runner, autojump_clock):
    here, name = runner(OWN)
    await run(here, name, "A" * 600)
    assert here.coordinator.finder.remembered == [(OWN, 1)]
    elsewhere, name = runner(OTHER)
    delegations = SimpleNamespace(open=asynccontextmanager(_open_and_finish))
    await run(attrs.evolve(elsewhere, delegations=delegations), name, "A" * 600)
    assert elsewhere.coordinator.finder.remembered == [(OTHER, 1)]


def offering(peer, model, blocks, *, name="named", causal=True):
    stage = StageOffer(ModelId(model), name, 30, 8, 100, blocks, True, True, "class", 0.001, 0.001, 100, causal=causal)
    return PeerInfo(PeerId(peer), Liveness.ALIVE, connected=True, offer=Offer(peer, 1, 0.0, "1", (), (stage,)))


@pytest.mark.parametrize(
    ("name", "meant"),
    [("named", "aa"), ("auto", "ff"), ("ff", "ff"), ("nam", "aa"), ("named:latest", "aa"), ("gpt", "aa")],
)
async def test_a_name_stands_for_the_weights_that_most_nodes_mean(runner, autojump_clock, name, meant):
    """Somebody who offers other weights under the same name, even all of them, does not get the requests for it."""
    runner, _ = runner(OTHER)
    peers = (
        offering("one", "aa", BlockRange(0, 10)),
        offering("liar", "ff", BlockRange(0, 30)),
        offering("two", "aa", BlockRange(10, 20)),
    )
    asked = []
    runner.coordinator.finder.mesh = SimpleNamespace(peers=lambda: peers)
    runner.loader.any_loaded = lambda embeds: None

    @asynccontextmanager
    async def opened(peer, model, request, delegated):
        asked.append(model)
        yield _finish()

    delegations = SimpleNamespace(open=opened)
    await run(attrs.evolve(runner, delegations=delegations, aliases={"gpt": "named"}), name)
    assert asked == [meant]


def loading(peer, model, blocks, *, name="named"):
    holding = Holding(ModelId(model), name, 30, (blocks,), aliases=(f"{name} for short",))
    return PeerInfo(
        PeerId(peer), Liveness.ALIVE, connected=True, offer=Offer(peer, 1, 0.0, "1", (), holdings=(holding,))
    )


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("other", "bb"),
        ("other for short", "bb"),
        ("bbbb", "bb"),
        ("oth", "bb"),
        ("named", "aa"),
        ("named-2", "cc"),
        ("nam", "aa"),
        ("auto", "aa"),
        ("o", None),
    ],
)
def test_what_is_only_being_loaded_is_meant_where_nothing_that_is_loaded_is_meant_as_clearly(runner, name, meant):
    runner, _ = runner(OTHER)
    peers = (
        offering("one", "aa", BlockRange(0, 10)),
        loading("two", "bb" * 32, BlockRange(0, 30), name="other"),
        loading("three", "bb" * 32, BlockRange(0, 10), name="other"),
        loading("four", "cc", BlockRange(0, 30), name="named-2"),
        loading("five", "dd", BlockRange(0, 30), name="named"),
        loading("six", "ee", BlockRange(0, 30), name="owl"),
    )
    runner.coordinator.finder.mesh = SimpleNamespace(peers=lambda: peers)
    runner.loader.any_loaded = runner.loader.any_whole = lambda embeds: None
    if meant is None:
        with pytest.raises(UnknownModel, match="models of peers: named, named-2, other, owl"):
            runner._resolve(GenerationRequest(RequestId("r"), name))
    else:
        assert runner._resolve(GenerationRequest(RequestId("r"), name)).id[:2] == meant


async def test_auto_is_what_is_here_when_nothing_is_loaded_or_offered(runner, autojump_clock):
    runner, name = runner(OWN)
    manifest = runner.loader.tables.catalog.resolve(name)
    runner.coordinator.finder.mesh = SimpleNamespace(peers=tuple)
    runner.loader.any_loaded, runner.loader.any_whole = (lambda embeds: None), (lambda embeds: manifest)
    assert (await run(runner, "auto"))[0].model == name
    runner.loader.any_whole = lambda embeds: None
    with pytest.raises(UnknownModel, match="no model 'auto'"):
        await run(runner, "auto")


@pytest.mark.parametrize(("embeds", "meant"), [(False, "first"), (True, "encoder")])
@pytest.mark.parametrize("here", ["loaded", "on disk", "on peers"])
async def test_auto_is_a_model_that_can_do_what_is_asked_for(models, runner, autojump_clock, embeds, meant, here):
    runner, _ = runner(OTHER)
    _, (writer, _) = models
    encoder = attrs.evolve(writer, name="encoder", config=attrs.evolve(writer.config, causal=False))
    catalog = SimpleNamespace(
        manifests=lambda: () if here == "on peers" else (encoder, writer),
        held=lambda model: {shard.id for shard in writer.shards},
        resolve=runner.loader.tables.catalog.resolve,
    )
    loaded = Latest({encoder.id: None, writer.id: None} if here == "loaded" else {})
    loader = ModelLoader(ModelTables(catalog, Latest(frozenset()), loaded), None, None, None, None, None)
    both = (("encoder", False), ("first", True)) if here == "on peers" else ()
    peers = [offering(name, name, BlockRange(0, 30), name=name, causal=causal) for name, causal in both]
    runner.coordinator.finder.mesh = SimpleNamespace(peers=lambda: peers)
    request = GenerationRequest(RequestId("r"), "auto", max_tokens=1, embeds=embeds)
    assert attrs.evolve(runner, loader=loader)._resolve(request).name == meant


async def _finish():
    await trio.lowlevel.checkpoint()
    yield DelegatedEvents("s", started=Started("named", 1, "elsewhere"))
    yield DelegatedEvents("s", finished=Finished(FinishReason.STOP, Usage(1, 1)))


async def _open_and_finish(peer, model, request, delegated):
    yield _finish()
