"""A node's file side without the node: catalog, manager and store in one temporary data folder."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio
from support.acquiring import acquirer
from support.tiny_gguf import write_tiny_llama

from meshnode.config.paths import DataPaths
from meshnode.files.acquisition import AcquisitionManager, Supply
from meshnode.files.acquisitions import AcquisitionProgress
from meshnode.files.builtin_sources import builtin_sources
from meshnode.files.catalog import ModelCatalog, open_catalog
from meshnode.files.peer_ports import PeerShards
from meshnode.files.share_making import ShareMaker
from meshnode.files.sources import Source
from meshnode.flow.lanes import Lanes
from meshnode.flow.latest import Latest
from meshnode.flow.mailbox import Mailbox
from meshnode.observe.metrics import Metrics
from meshnode.store.memory import MemoryStore
from meshnode.store.protocol import KeyValueStore
from meshnode.supervise.health import HealthBoard
from meshnode.supervise.subsystem import Pulse
from meshnode.types.manifest import ModelManifest


@attrs.define(eq=False)
class Running:
    """One incarnation of the manager, and what a user of it would hold."""

    manager: AcquisitionManager
    catalog: ModelCatalog
    mailbox: Mailbox
    progress: Latest[tuple[AcquisitionProgress, ...]]
    health: HealthBoard
    metrics: Metrics

    async def settled(self, model: ModelManifest) -> None:
        """Wait until the catalog holds all of a model's wanted shards."""
        with trio.fail_after(20):
            while not set(self.catalog.entry(model.id).wanted) <= self.catalog.held(model.id):
                await self.catalog.revision.changed(self.catalog.revision.version)

    async def phase(self, phase: str) -> AcquisitionProgress:
        """Wait for a progress row in this phase."""
        with trio.fail_after(20):
            async for rows in self.progress.values():
                for row in rows:
                    if row.phase == phase:
                        return row
        raise AssertionError

    async def idle(self) -> None:
        """Wait until no acquisition is shown any more."""
        with trio.fail_after(20):
            while self.progress.value:
                await self.progress.changed(self.progress.version)


@attrs.define(eq=False)
class DataFolder:
    """What outlives an incarnation: the folder and the store."""

    root: Path
    store: KeyValueStore = attrs.field(factory=MemoryStore)
    environment: dict[str, str] = attrs.field(factory=dict)
    offline: bool = False
    aliases: dict[str, str] = attrs.field(factory=dict)
    sources: tuple[Source, ...] | None = None
    peers: PeerShards | None = None
    maker: ShareMaker | None = None

    @property
    def paths(self) -> DataPaths:
        return DataPaths(self.root)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Running]:
        lanes, metrics = Lanes(), Metrics()
        catalog = await open_catalog(self.store, self.paths, metrics, self.aliases)
        mailbox, progress, health = Mailbox("acquisition", 16), Latest(()), HealthBoard()
        sources = self.sources or builtin_sources(
            lanes, offline=self.offline, environment=self.environment, downloads=self.paths.transfers
        )
        manager = AcquisitionManager(
            catalog, mailbox, progress, lanes, Supply(sources, self.peers, self.maker), health, Pulse()
        )
        node = Running(manager, catalog, mailbox, progress, health, metrics)
        async with trio.open_nursery() as nursery:
            await nursery.start(manager.run)
            yield node
            nursery.cancel_scope.cancel()

    def files(self, folder: str) -> list[Path]:
        """Return the files below a folder of the data folder."""
        return sorted(path for path in (self.root / folder).rglob("*") if path.is_file())


@pytest.fixture
def data(tmp_path) -> DataFolder:
    return DataFolder(tmp_path / "data")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A GGUF file of a few blocks."""
    return write_tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf", blocks=3)


@pytest.fixture(scope="session")
def killable():
    """What runs a node's file side in a process that can be killed."""
    with acquirer() as run:
        yield run
