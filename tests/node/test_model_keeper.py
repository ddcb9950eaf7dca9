"""The models that the settings name are acquired, loaded when they are whole, and late until then."""

from contextlib import asynccontextmanager

import pytest
import structlog
import trio

from meshnode.errors import RequestError, SourceUnavailable, UnsupportedModel
from meshnode.files.acquisitions import AcquireModel, AcquisitionProgress
from meshnode.node.channels import Channels
from meshnode.node.model_keeper import Intent, KeeperResources, ModelKeeper
from meshnode.supervise.health import HealthBoard
from meshnode.types.blocks import BlockRange


class Manager:
    """Stands in for the AcquisitionManager: puts what it is asked for into the catalog, or refuses as scripted."""

    def __init__(self, channels, catalog):
        self.channels, self.catalog = channels, catalog
        self.offers, self.refusals, self.asked = {}, {}, []

    async def run(self):
        with self.channels.acquisitions.serve() as letters:
            async for letter in letters:
                self.asked.append((trio.current_time(), letter.question))
                reference = letter.question.reference
                if self.refusals.get(reference):
                    letter.refuse(self.refusals[reference].pop(0))
                    continue
                entry = self.offers[reference]
                await self.catalog.put(entry)
                self.catalog.mark_held(shard for shard in entry.manifest.shards if shard.id in entry.wanted)
                letter.answer(entry.manifest)


class Scene:
    def __init__(self, catalog):
        self.catalog, self.channels, self.health = catalog, Channels(), HealthBoard()
        self.manager = Manager(self.channels, catalog)
        self.resources = KeeperResources(
            catalog,
            self.channels.acquisitions,
            self.channels.progress,
            self.channels.intent,
            self.channels.wanted,
            self.health,
        )

    @property
    def wanted(self):
        return self.channels.wanted.value

    @property
    def intent(self):
        return self.channels.intent.value

    def conditions(self):
        return [condition.text for condition in self.health.conditions()]

    @asynccontextmanager
    async def running(self, names=(), blocks=None):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.manager.run)
            keeper = ModelKeeper(self.resources, names, blocks)
            await nursery.start(keeper.run)
            yield keeper
            await keeper.drain()
            nursery.cancel_scope.cancel()


@pytest.fixture
def scene(catalog):
    return Scene(catalog)


def hold(catalog, entry, count=None):
    catalog.mark_held(entry.manifest.shards[:count])


async def test_a_named_model_is_acquired_and_then_wanted(scene, make_entry, autojump_clock):
    entry = make_entry("tiny", reference="starter")
    scene.manager.offers["starter"] = entry
    async with scene.running(["starter"]):
        assert scene.intent == Intent(pending=("starter",))
        await trio.sleep(1)
        assert scene.intent == Intent(models=frozenset({entry.manifest.id}))
        assert scene.wanted == {entry.manifest.id}
    assert [question for _, question in scene.manager.asked] == [AcquireModel("starter")]


async def test_the_blocks_of_the_settings_are_asked_for_and_a_part_is_never_loaded(scene, make_entry, autojump_clock):
    scene.manager.offers["big.gguf"] = make_entry("big", kept=2)
    async with scene.running(["big.gguf"], BlockRange(0, 1)):
        await trio.sleep(1)
        assert scene.manager.asked[0][1] == AcquireModel("big.gguf", BlockRange(0, 1))
        assert scene.intent == Intent()
        assert scene.wanted == frozenset()


async def test_a_model_that_is_here_is_known_by_its_name_and_made_whole_from_where_it_came(
    scene, make_entry, autojump_clock
):
    entry = make_entry("tiny", reference="/models/tiny.gguf")
    scene.manager.offers["/models/tiny.gguf"] = entry
    await scene.catalog.put(entry)
    async with scene.running(["short"]):
        await trio.sleep(1)
        assert [question for _, question in scene.manager.asked] == [AcquireModel("/models/tiny.gguf")]
        assert scene.wanted == {entry.manifest.id}


async def test_a_model_that_nobody_has_any_more_is_served_as_it_is(scene, make_entry, autojump_clock):
    entry = make_entry("tiny")
    await scene.catalog.put(entry)
    async with scene.running(["tiny"]):
        await trio.sleep(1)
        assert scene.manager.asked == []
        assert scene.wanted == frozenset()
        hold(scene.catalog, entry)
        await trio.sleep(1)
        assert scene.wanted == {entry.manifest.id}


async def test_without_names_a_whole_model_that_is_alone_and_every_part_are_wanted_once_verified(
    scene, make_entry, autojump_clock
):
    whole, part = make_entry("whole"), make_entry("part", kept=3)
    await scene.catalog.put(whole)
    await scene.catalog.put(part)
    async with scene.running():
        hold(scene.catalog, part, 3)
        hold(scene.catalog, whole, 4)
        await trio.sleep(1)
        assert scene.intent == Intent(models=frozenset({whole.manifest.id, part.manifest.id}))
        assert scene.wanted == {part.manifest.id}
        hold(scene.catalog, whole)
        await trio.sleep(1)
        assert scene.wanted == {whole.manifest.id, part.manifest.id}


async def test_without_names_none_of_several_whole_models_is_loaded_unasked(scene, make_entry, autojump_clock):
    first, second, third = (make_entry(name) for name in ("first", "second", "third"))
    for entry in (first, second):
        await scene.catalog.put(entry)
        hold(scene.catalog, entry)
    async with scene.running():
        await trio.sleep(1)
        assert scene.intent == Intent()
        assert scene.wanted == frozenset()
        scene.channels.wanted.set(frozenset({second.manifest.id}))  # the router had a request for it
        await scene.catalog.put(third)
        await trio.sleep(1)
        assert scene.wanted == {second.manifest.id}


async def test_a_model_that_comes_beside_a_lone_one_does_not_unload_it(scene, make_entry, autojump_clock):
    first, second = make_entry("first"), make_entry("second")
    await scene.catalog.put(first)
    hold(scene.catalog, first)
    async with scene.running():
        await trio.sleep(1)
        assert scene.wanted == {first.manifest.id}
        await scene.catalog.put(second)
        hold(scene.catalog, second)
        await trio.sleep(1)
        assert scene.wanted == {first.manifest.id}


async def test_a_removed_model_is_no_longer_wanted_and_what_the_router_loaded_stays(scene, make_entry, autojump_clock):
    mine, other = make_entry("mine"), make_entry("other")
    for entry in (mine, other):
        await scene.catalog.put(entry)
        hold(scene.catalog, entry)
    async with scene.running(["mine"]):
        await trio.sleep(1)
        scene.channels.wanted.set(scene.wanted | {other.manifest.id})
        await scene.catalog.put(make_entry("third"))
        await trio.sleep(1)
        assert scene.wanted == {mine.manifest.id, other.manifest.id}
        await scene.catalog.remove(mine.manifest.id)
        await trio.sleep(1)
        assert scene.wanted == {other.manifest.id}
        assert scene.intent == Intent()


async def test_a_source_that_is_away_is_tried_again_with_growing_pauses(scene, make_entry, autojump_clock):
    scene.manager.offers["starter"] = make_entry("tiny")
    scene.manager.refusals["starter"] = [SourceUnavailable("the index does not answer")] * 3
    async with scene.running(["starter"]):
        await trio.sleep(1)
        assert scene.conditions() == ["starter cannot be had now: the index does not answer; next try in 15 s"]
        assert scene.intent.pending == ("starter",)
        await trio.sleep(200)
        assert [at for at, _ in scene.manager.asked] == [0, 15, 45, 105]
        assert scene.conditions() == []
        assert scene.intent.pending == ()


@pytest.mark.parametrize("refusal", [UnsupportedModel("unknown architecture"), RequestError("not a reference")])
async def test_what_cannot_be_had_is_not_tried_again_and_the_others_go_on(scene, make_entry, refusal, autojump_clock):
    scene.manager.offers["good"] = make_entry("good")
    scene.manager.refusals["bad"] = [refusal]
    async with scene.running(["bad", "good"]):
        await trio.sleep(5000)
        assert len(scene.manager.asked) == 2
        assert scene.conditions() == [f"bad cannot be served: {refusal}"]
        assert scene.intent.pending == ("bad",)
        assert len(scene.wanted) == 1


async def test_progress_is_told_at_each_phase_and_now_and_then(scene, autojump_clock):
    def rows(phase, done):
        scene.channels.progress.set((AcquisitionProgress("starter", phase, done << 20, 100 << 20),))

    with structlog.testing.capture_logs() as logs:
        async with scene.running():
            for second in range(12):
                rows("downloading", second)
                await trio.sleep(1)
            rows("done", 100)
            await trio.sleep(1)
            rows("done", 100)
            await trio.sleep(9)
            scene.channels.progress.set((AcquisitionProgress("other", "importing"),))
            await trio.sleep(1)
    assert [(log["event"], log["share"]) for log in logs] == [
        ("model downloading", "0 %"),
        ("model downloading", "5 %"),
        ("model downloading", "10 %"),
        ("model done", "100 %"),
        ("model importing", ""),
    ]
