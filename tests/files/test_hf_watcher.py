"""The HfWatcher: when it looks, what it keeps, and that nothing a hub does can end it."""

import pytest
import trio
from support.hub_server import run_hub

from meshnode.errors import SourceUnavailable, StoreError
from meshnode.files.hf_watcher import HfWatcher, WatcherResources, WatcherSettings, open_standings
from meshnode.files.hub_client import Hub
from meshnode.files.hub_trending import Trending, fetch_trending
from meshnode.files.hub_trust import MeshFacts, Trust, TrustRules
from meshnode.flow.latest import Latest
from meshnode.store.memory import MemoryStore
from meshnode.supervise.health import HealthBoard
from meshnode.supervise.subsystem import Pulse

DAY = 86400.0
START = 1_800_000_000.0
SETTINGS = WatcherSettings(TrustRules(frozenset({"a", "bartowski"})))


def trending(name, downloads=0, age=30 * DAY):
    return Trending(name, downloads, 3, START - age)


class World:
    """A hub, and a node that watches it."""

    def __init__(self):
        self.store, self.health, self.seen = MemoryStore(), HealthBoard(), Latest(())
        self.found, self.facts, self.looks = (), {}, []

    async def fetch(self):
        await trio.lowlevel.checkpoint()
        self.looks.append(trio.current_time())
        if isinstance(self.found, Exception):
            raise self.found
        return self.found

    async def start(self, nursery, settings=SETTINGS):
        begun = trio.current_time()
        resources = WatcherResources(
            self.fetch,
            await open_standings(self.store),
            self.seen,
            lambda: self.facts,
            self.health,
            lambda: START + trio.current_time() - begun,
        )
        await nursery.start(HfWatcher(resources, settings, Pulse()).run)

    def shown(self):
        return [(each.found.repository, each.trust) for each in self.seen.value]


@pytest.fixture
def world():
    return World()


async def test_it_looks_soon_and_then_every_hour(world, nursery, autojump_clock):
    begun = trio.current_time()
    await world.start(nursery)
    await trio.sleep(10 * 3600)
    assert world.looks[0] - begun == 30
    assert len(world.looks) == 10
    for number, at in enumerate(world.looks[1:], start=1):
        assert 0 <= at - world.looks[0] - number * 3600 <= 360


async def test_what_was_seen_is_kept_over_a_restart(world, autojump_clock):
    world.found = trending("a/x", 10**6), trending("b/y", 5)
    async with trio.open_nursery() as nursery:
        await world.start(nursery)
        await trio.sleep(60)
        nursery.cancel_scope.cancel()
    seen, world.seen = world.shown(), Latest(())
    assert seen == [("a/x", Trust.VERIFIED), ("b/y", Trust.SEEN)]
    async with trio.open_nursery() as nursery:
        await world.start(nursery)
        assert world.shown() == seen
        nursery.cancel_scope.cancel()


async def test_what_trends_no_longer_is_forgotten_unless_it_has_come_further(world, nursery, autojump_clock):
    world.found = trending("a/x", 10**6), trending("b/y", 5)
    await world.start(nursery)
    await trio.sleep(60)
    world.found = (trending("c/z", 5),)
    world.facts = {"c/z": MeshFacts(is_asked_for=True)}
    await trio.sleep(4000)
    assert world.shown() == [("a/x", Trust.VERIFIED), ("c/z", Trust.WANTED)]


async def test_it_remembers_so_many_and_no_more(world, nursery, autojump_clock):
    world.found = tuple(trending(f"a/m{number}", number) for number in range(500))
    await world.start(nursery)
    await trio.sleep(60)
    assert len(world.shown()) == 200
    assert len(list((await open_standings(world.store)).items())) == 200


@pytest.mark.parametrize("error", [SourceUnavailable("no route to host"), StoreError("the disk is full")])
async def test_a_failure_is_a_condition_until_the_next_success(world, nursery, autojump_clock, error):
    world.found = (trending("a/x", 10**6),)
    await world.start(nursery)
    await trio.sleep(60)
    world.found = error
    await trio.sleep(4000)
    (condition,) = world.health.conditions()
    assert (condition.code, condition.subsystem) == ("hub_not_reached", "HfWatcher")
    assert str(error) in condition.text
    assert "hub.watch = false" in condition.text
    assert world.shown() == [("a/x", Trust.VERIFIED)], "what was seen last is shown meanwhile"
    world.found = ()
    await trio.sleep(4000)
    assert world.health.conditions() == ()


# The hub's answer

ENTRY = {
    "id": "bartowski/x-GGUF",
    "createdAt": "2024-05-01T10:00:00.000Z",
    "downloads": 5,
    "likes": 2,
    "tags": ["gguf"],
}

pytest_hub = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest_hub
async def test_what_trends_is_read_and_bad_entries_are_left_out():
    with run_hub() as hub:
        bad = [
            {**ENTRY, "id": "no-slash"},
            {**ENTRY, "id": "../../etc/passwd"},
            {**ENTRY, "id": "a/b:c"},
            {**ENTRY, "id": 7},
            {**ENTRY, "createdAt": "yesterday"},
            {**ENTRY, "downloads": -1},
            {**ENTRY, "downloads": "many"},
            {**ENTRY, "private": True},
            {"id": "x/y"},
            "text",
            None,
        ]
        hub.trending[:] = [*bad, ENTRY, {**ENTRY, "id": "a/b", "likes": 0}]
        found = await fetch_trending(Hub(endpoint=hub.endpoint), limit=10)
        assert found == (Trending("bartowski/x-GGUF", 5, 2, 1714557600.0), Trending("a/b", 5, 0, 1714557600.0))
        path = next(path for server, path, _ in hub.seen if server == "front")
        assert path == "/api/models?sort=trendingScore&direction=-1&filter=gguf&full=true&limit=10"
        hub.trending[:] = [ENTRY] * 300
        assert len(await fetch_trending(Hub(endpoint=hub.endpoint), limit=10)) == 10


@pytest_hub
@pytest.mark.parametrize("answer", [{"error": "no"}, "text", 5])
async def test_what_is_no_list_is_said_to_be_no_hub(answer):
    with run_hub() as hub:
        hub.trending = answer
        with pytest.raises(SourceUnavailable, match="does not answer as a hub does"):
            await fetch_trending(Hub(endpoint=hub.endpoint))


@pytest_hub
async def test_a_busy_hub_is_asked_again_and_a_gone_one_given_up():
    with run_hub() as hub:
        hub.lookup_faults[:] = [429, 503]
        hub.trending[:] = [ENTRY]
        assert len(await fetch_trending(Hub(endpoint=hub.endpoint), pause=0.01)) == 1
        endpoint = hub.endpoint
    with pytest.raises(SourceUnavailable, match="tried 6 times"):
        await fetch_trending(Hub(endpoint=endpoint), pause=0.001)
