"""The HfWatcher: looks once an hour at what is popular on the hub, so that the wishlist can say what might be worth having.

It downloads nothing. A hub that cannot be asked is a condition for an operator to read; what was seen last is shown meanwhile.
"""

import time
from collections.abc import Awaitable, Callable, Mapping

import attrs
import structlog
import trio

from meshnode.errors import MeshnodeError
from meshnode.files.hub_trending import Trending
from meshnode.files.hub_trust import MeshFacts, Standing, Trust, TrustRules, judge
from meshnode.flow.latest import Latest
from meshnode.flow.periodic import Ticker
from meshnode.store.protocol import KeyValueStore
from meshnode.store.tables import Table, struct_codec, text_codec
from meshnode.supervise.health import HealthBoard
from meshnode.supervise.subsystem import Pulse

__all__ = ["HfWatcher", "WatcherResources", "WatcherSettings", "open_standings"]

_NAME = "HfWatcher"
_NOT_REACHED = "hub_not_reached"
_PULSE_EVERY = 5.0  # seconds
_MOST = 200  # repositories that are remembered
_log = structlog.get_logger(__name__)


@attrs.frozen
class WatcherSettings:
    """Times in seconds."""

    rules: TrustRules
    interval: float = 3600.0
    jitter: float = 0.1  # of the interval, so that not all nodes ask at once

    @property
    def first(self) -> float:
        """How long after the start the first look is: the node has better things to do then."""
        return min(30.0, self.interval / 2)


@attrs.frozen(eq=False)
class WatcherResources:
    """What outlives an incarnation."""

    fetch: Callable[[], Awaitable[tuple[Trending, ...]]]  # raises MeshnodeError leafs
    standings: Table[str, Standing]  # by repository; written by the watcher alone
    seen: Latest[tuple[Standing, ...]]  # the most trusted first
    facts: Callable[[], Mapping[str, MeshFacts]]  # of the mesh, by repository
    health: HealthBoard
    clock: Callable[[], float] = time.time  # Unix seconds


@attrs.define(eq=False)
class HfWatcher:
    """One incarnation."""

    _resources: WatcherResources
    _settings: WatcherSettings
    _pulse: Pulse

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look until cancelled."""
        self._show(dict(self._resources.standings.items()))
        task_status.started()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_pulse)
            await trio.sleep(self._settings.first)
            async for _ in Ticker(self._settings.interval, self._settings.jitter):
                await self._look()

    async def drain(self) -> None:
        """Nothing to do: a look may be cancelled."""

    async def _keep_pulse(self) -> None:
        while True:
            self._pulse.touch()
            await trio.sleep(_PULSE_EVERY)

    async def _look(self) -> None:
        shared = self._resources
        try:
            found = await shared.fetch()
            await self._judge(found)
        except MeshnodeError as error:
            _log.info("hub not looked at", why=str(error))
            shared.health.raise_condition(
                _NOT_REACHED,
                _NAME,
                f"what is popular on the hub is not known, or not up to date: {error}; hub.watch = false ends the looks",
            )
        else:
            _log.debug("hub looked at", repositories=len(found))
            shared.health.clear_condition(_NOT_REACHED, _NAME)

    async def _judge(self, found: tuple[Trending, ...]) -> None:
        """Bring what is remembered in line with what trends and with the mesh. Raises StoreError."""
        shared, now = self._resources, self._resources.clock()
        before, facts = dict(shared.standings.items()), shared.facts()
        trending = {each.repository: each for each in found}
        after = {
            repository: judge(
                before.get(repository),
                trending[repository] if repository in trending else before[repository].found,
                facts.get(repository, MeshFacts()),
                self._settings.rules,
                now,
            )
            for repository in dict.fromkeys((*trending, *before))
        }
        kept = [name for name, each in _ordered(after) if name in trending or each.trust > Trust.SEEN][:_MOST]
        for name in before.keys() - set(kept):
            await shared.standings.delete(name)
        for name in kept:
            if after[name] != before.get(name):
                await shared.standings.put(name, after[name])
        self._show({name: after[name] for name in kept})

    def _show(self, standings: Mapping[str, Standing]) -> None:
        self._resources.seen.set(tuple(each for _, each in _ordered(standings)))


def _ordered(standings: Mapping[str, Standing]) -> list[tuple[str, Standing]]:
    return sorted(standings.items(), key=lambda row: (-row[1].trust, -row[1].found.downloads, row[0]))


async def open_standings(store: KeyValueStore) -> Table[str, Standing]:
    """Open what the watcher remembers. Raises StoreError."""
    table = Table(store, b"hub-standings/", text_codec(), struct_codec(Standing))
    await table.prepare()
    return table
