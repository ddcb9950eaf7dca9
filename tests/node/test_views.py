"""What the API is told: every model with how far it is, every subsystem, and exactly what is not ready."""

import attrs
import msgspec
import pytest
import trio

from meshnode.errors import LastCopy, RequestError
from meshnode.files.acquisitions import AcquireModel, AcquisitionProgress, RemoveModel
from meshnode.flow.mailbox import Mailbox
from meshnode.node.channels import Channels
from meshnode.node.mesh import NoMesh, NoPeers
from meshnode.node.model_keeper import Intent
from meshnode.node.views import ModelRequests, ModelViews, NodeView
from meshnode.supervise.health import HealthBoard
from meshnode.supervise.subsystem import ChildState, Criticality, Status
from meshnode.types.blocks import BlockRange
from meshnode.types.parts import Added
from meshnode.types.peers import Holding, Liveness, Offer, PeerInfo, StageOffer


@attrs.define
class Spec:
    blocks: BlockRange = attrs.field(factory=lambda: BlockRange(0, 2))
    device: str = "cpu"
    embedding: bool = True
    head: bool = True


@attrs.define
class Loaded:
    """As much of inference.models.LoadedModel as is looked at."""

    manifest: object
    is_ready: bool
    spec: Spec = attrs.field(factory=Spec)
    problem: str | None = None
    thinks: bool = False
    device: str = "cpu"
    memory_bytes: int = 0
    restarts: int = 0

    @property
    def is_whole(self):
        return len(self.spec.blocks) == self.manifest.config.block_count


@pytest.fixture
def channels():
    return Channels()


@pytest.fixture
def views(catalog, channels):
    return ModelViews(catalog, channels.loaded, channels.intent, NoPeers(), 0)


async def test_a_model_says_how_far_it_is(catalog, channels, views, make_entry):
    entry = make_entry("tiny")
    await catalog.put(entry)
    catalog.mark_held(entry.manifest.shards[:2])
    (model,) = views.served()
    assert (model.loaded, model.detail, model.created) == (
        False,
        "2 of 5 shards are here; blocks 0:2, the head on no reachable node; the embedding on disk, and loaded by nobody",
        views.started,
    )
    assert (model.shards_held, model.shards, model.copies, model.routes) == (2, 5, 0, 0)
    catalog.mark_held(entry.manifest.shards)
    assert views.served()[0].detail == "not loaded; the first request loads it"
    channels.loaded.set({entry.manifest.id: Loaded(entry.manifest, is_ready=False)})
    assert (views.served()[0].loaded, views.served()[0].detail) == (False, "loading")
    refused = Loaded(entry.manifest, is_ready=False, problem="too little memory")
    channels.loaded.set({entry.manifest.id: refused})
    assert views.served()[0].detail == "too little memory"
    channels.loaded.set({entry.manifest.id: Loaded(entry.manifest, is_ready=True)})
    (model,) = views.served()
    assert (model.loaded, model.detail) == (True, "")
    assert (model.shards_held, model.shards, model.copies, model.routes) == (5, 5, 1, 1)


@pytest.mark.parametrize(("device", "on_gpu"), [("cpu", 0), ("cuda:0", 7)])
async def test_a_loaded_model_says_what_it_holds_of_memory_and_where(
    catalog, channels, views, make_entry, device, on_gpu
):
    entry = make_entry("tiny")
    await catalog.put(entry)
    assert (views.served()[0].memory_bytes, views.served()[0].gpu_bytes) == (0, 0)
    loaded = Loaded(entry.manifest, is_ready=True, device=device, memory_bytes=7)
    channels.loaded.set({entry.manifest.id: loaded})
    assert (views.served()[0].memory_bytes, views.served()[0].gpu_bytes) == (7, on_gpu)


@pytest.mark.parametrize(("setting", "expected"), [(0, 2048), (512, 512), (9000, 2048)])
async def test_the_context_is_the_settings_within_the_models(catalog, channels, make_entry, setting, expected):
    await catalog.put(make_entry("tiny"))
    (model,) = ModelViews(catalog, channels.loaded, channels.intent, NoPeers(), setting).served()
    assert model.context_length == expected


async def test_a_model_was_created_when_its_first_shard_was_written(catalog, views, make_entry):
    entry = make_entry("tiny")
    await catalog.put(entry)
    path = catalog.path(entry.manifest.shards[0].id)
    path.parent.mkdir(parents=True)
    path.touch()
    assert views.served()[0].created == int(path.stat().st_mtime)


async def test_models_to_be_served_are_late_until_they_are_loaded(catalog, channels, views, make_entry):
    entry = make_entry("tiny")
    await catalog.put(entry)
    assert views.unready() == ()
    channels.intent.set(Intent(("starter",), frozenset({entry.manifest.id})))
    assert views.unready() == ("model starter", "model tiny")
    channels.intent.set(Intent((), frozenset({entry.manifest.id})))
    channels.loaded.set({entry.manifest.id: Loaded(entry.manifest, is_ready=False)})
    assert views.unready() == ("model tiny",)
    channels.loaded.set({entry.manifest.id: Loaded(entry.manifest, is_ready=True)})
    assert views.unready() == ()


async def test_the_status_is_complete_and_json(catalog, channels, views, make_entry, autojump_clock):
    entry = make_entry("tiny")
    await catalog.put(entry)
    channels.loaded.set({entry.manifest.id: Loaded(entry.manifest, is_ready=True, restarts=2)})
    channels.progress.set((AcquisitionProgress("starter", "downloading", 5, 10),))
    health = HealthBoard()
    health.raise_condition("pulse_silent", "InferenceRouter", "silent")
    view = NodeView("http://127.0.0.1:1", views, channels.progress, health, NoMesh("me", channels))
    await trio.sleep(2.5)
    states = (
        ChildState("InferenceRouter", Criticality.CRITICAL, Status.RUNNING, 1, "ValueError: x"),
        ChildState("ApiServer", Criticality.CRITICAL, Status.BACKING_OFF, 0, None),
    )
    status = msgspec.json.decode(msgspec.json.encode(view.status(states)))
    assert status["uptime"] == 2.5
    assert status["subsystems"][0] == {
        "name": "InferenceRouter",
        "critical": True,
        "state": "running",
        "restarts": 1,
        "last_error": "ValueError: x",
    }
    (model,) = status["models"]
    assert (model["name"], model["architecture"]) == ("tiny", entry.manifest.config.architecture)
    assert (model["nbytes"], model["parameters"]) == (entry.manifest.nbytes, entry.manifest.parameters)
    assert status["workers"] == [{"model": "tiny", "blocks": "0:2", "device": "cpu", "ready": True, "restarts": 2}]
    assert status["conditions"] == [{"code": "pulse_silent", "subsystem": "InferenceRouter", "text": "silent"}]
    assert status["acquisitions"][0]["done_bytes"] == 5
    assert {"node", "version", "pid", "url"} <= set(status)
    assert view.unready(states) == ("ApiServer",)


async def test_adding_and_removing_ask_the_owner(nursery, make_entry, catalog, views):
    box, asked = Mailbox("owner", 0), []

    async def serve():
        with box.serve() as letters:
            async for letter in letters:
                asked.append(letter.question)
                letter.answer(make_entry("tiny").manifest)

    nursery.start_soon(serve)
    await catalog.put(make_entry("tiny"))
    requests = ModelRequests(box, views)
    catalog.mark_held(make_entry("tiny").manifest.shards[:3])
    assert await requests.add("big.gguf", "0:1") == Added(
        "tiny", "the tokenizer, the embedding, blocks 0:1", "blocks 1:2, the head"
    )
    catalog.mark_held(make_entry("tiny").manifest.shards)
    assert (await requests.add("starter", None)).missing == ""
    await requests.remove("tiny")
    assert asked == [AcquireModel("big.gguf", BlockRange(0, 1)), AcquireModel("starter"), RemoveModel("tiny")]
    with pytest.raises(RequestError, match="blocks: "):
        await requests.add("starter", "many")
    nursery.cancel_scope.cancel()


async def test_what_no_other_node_of_the_mesh_has_is_removed_by_force_only(nursery, catalog, channels, make_entry):
    box, removed = Mailbox("owner", 0), []

    async def serve():
        with box.serve() as letters:
            async for letter in letters:
                removed.append(letter.question)
                letter.answer(entry.manifest)

    nursery.start_soon(serve)
    entry = make_entry("tiny")
    await catalog.put(entry)
    catalog.mark_held(entry.manifest.shards)
    model = entry.manifest.id
    peers = Peers([])
    requests = ModelRequests(box, ModelViews(catalog, channels.loaded, channels.intent, peers, 0))

    async def refused(*holdings):
        peers.offers, peers.holdings = [offer_of("another", 0, 1)], holdings
        with pytest.raises(LastCopy) as caught:
            await requests.remove("tiny")
        return str(caught.value).partition(" to have ")[2].partition(";")[0]

    assert await refused() == "the embedding, blocks 0:2, the head of tiny"
    assert (
        await refused(Holding("another", "tiny", 2, (BlockRange(0, 2),), embedding=True, head=True)) == await refused()
    )
    assert (
        await refused(Holding(model, "tiny", 2, (BlockRange(1, 2),), embedding=True)) == "blocks 0:1, the head of tiny"
    )
    assert removed == []
    await requests.remove("tiny", force=True)
    rest = Holding(model, "tiny", 2, (BlockRange(0, 1),), head=True)
    peers.holdings += (rest,)
    await requests.remove("tiny")
    peers.liveness = Liveness.DEAD  # a node that knows nobody asks nobody
    await requests.remove("tiny")
    assert removed == [RemoveModel("tiny")] * 3
    nursery.cancel_scope.cancel()


@attrs.define
class Peers:
    offers: list
    holdings: tuple = ()  # of each
    liveness: Liveness = Liveness.ALIVE

    def peers(self):
        return [
            PeerInfo(
                f"p{number}",
                self.liveness,
                connected=True,
                offer=Offer(f"p{number}", 1, 0.0, "1", (), (offer,), holdings=self.holdings),
            )
            for number, offer in enumerate(self.offers)
        ]


def offer_of(model, start, end, name="other"):
    return StageOffer(model, name, 2, 8, 512, BlockRange(start, end), True, True, "x", 1e-3, 1e-4, 100, ("alias",))


async def test_a_part_of_a_model_is_usable_once_peers_have_the_rest(catalog, channels, make_entry):
    entry = make_entry("tiny")
    await catalog.put(entry)
    peers = Peers([])
    views = ModelViews(catalog, channels.loaded, channels.intent, peers, 0)
    coming = Loaded(entry.manifest, is_ready=False, spec=Spec(BlockRange(0, 1), head=False))
    channels.loaded.set({entry.manifest.id: coming})
    assert (views.served()[0].loaded, views.served()[0].detail) == (
        False,
        "loading; blocks 0:1 here; blocks 1:2, the head on no reachable node",
    )
    part = Loaded(entry.manifest, is_ready=True, spec=Spec(BlockRange(0, 1), head=False))
    channels.loaded.set({entry.manifest.id: part})
    assert (views.served()[0].loaded, views.served()[0].detail) == (
        False,
        "blocks 0:1 here; blocks 1:2, the head on no reachable node",
    )
    peers.offers.append(attrs.evolve(offer_of(entry.manifest.id, 1, 2), head=False))
    listed = views.served()[0]
    assert (listed.loaded, listed.routes, listed.detail) == (False, 0, "blocks 0:1 here; the head on no reachable node")
    peers.offers.append(offer_of(entry.manifest.id, 1, 2))
    assert (views.served()[0].loaded, views.served()[0].detail) == (True, "blocks 0:1 here")


async def test_models_that_only_peers_have_are_listed_too(catalog, channels):
    peers = Peers([offer_of("m", 0, 1)])
    views = ModelViews(catalog, channels.loaded, channels.intent, peers, 0)
    (model,) = views.served()
    assert (model.name, model.loaded, model.detail) == ("other", False, "on peers; blocks 1:2 on no reachable node")
    peers.offers.append(offer_of("m", 1, 2))
    (model,) = views.served()
    assert (model.loaded, model.aliases) == (True, ("alias",))


async def test_copies_and_routes_are_counted_over_all_who_are_there(catalog, channels, make_entry):
    entry = make_entry("tiny")
    await catalog.put(entry)
    catalog.mark_held(entry.manifest.shards)
    model = entry.manifest.id
    there = Holding(model, "tiny", 2, (BlockRange(0, 2),), embedding=True, head=True, nbytes=1)
    peers = Peers([offer_of(model, 0, 2), offer_of(model, 0, 1)], (there,))
    views = ModelViews(catalog, channels.loaded, channels.intent, peers, 0)
    (listed,) = views.served()
    assert (listed.copies, listed.routes) == (3, 1)
    peers.liveness = Liveness.DEAD
    (listed,) = views.served()
    assert (listed.copies, listed.routes) == (1, 0)


async def test_what_lies_on_disks_and_is_loaded_by_nobody_is_told_apart(catalog, channels):
    peers = Peers([offer_of("m", 0, 1)], (Holding("m", "other", 2, (BlockRange(0, 2),), nbytes=1),))
    (listed,) = ModelViews(catalog, channels.loaded, channels.intent, peers, 0).served()
    assert listed.detail == "on peers; blocks 1:2 on disk, and loaded by nobody"
    assert listed.copies == 0, "nobody has its ends"
