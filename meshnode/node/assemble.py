"""Puts a node together: resources as nested contexts, dependencies as arguments, and nothing that can be reached from outside."""

import importlib
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import attrs
import trio

from meshnode.api.ports import ApiDependencies
from meshnode.api.responses.archive import ResponseArchive, open_archive
from meshnode.api.server import ApiServer
from meshnode.api.serving import ServingLimits
from meshnode.config.loading import LoadedConfig
from meshnode.config.paths import DataPaths
from meshnode.config.schema import HubConfig, NodeConfig
from meshnode.crypto.identity import Identity, load_identity
from meshnode.dashboard.routes import Dashboard
from meshnode.engine.devices import physical_cores
from meshnode.files.acquisition import AcquisitionManager, Supply
from meshnode.files.builtin_sources import builtin_sources
from meshnode.files.catalog import ModelCatalog, open_catalog
from meshnode.files.hf_watcher import HfWatcher, WatcherResources, WatcherSettings, open_standings
from meshnode.files.hub_client import Hub
from meshnode.files.hub_trending import fetch_trending
from meshnode.files.hub_trust import Standing, TrustRules
from meshnode.files.share_making import ShareMaker
from meshnode.files.shelf import CatalogShelf, Helping
from meshnode.files.sources import Source
from meshnode.flow.lanes import Lanes
from meshnode.inference.calls import open_generations
from meshnode.inference.model_loading import ModelTables
from meshnode.inference.models import EngineSettings
from meshnode.inference.privacy import Privacy
from meshnode.inference.router import InferenceRouter, RouterResources, RouterSettings
from meshnode.network.address_book import AddressBook, open_address_book
from meshnode.node.api_key import load_api_key
from meshnode.node.candidates import candidates, facts_of
from meshnode.node.channels import Channels
from meshnode.node.children import Builders, child_specs
from meshnode.node.data_folder import announce, hold_data_folder
from meshnode.node.executors import Executors
from meshnode.node.lifecycle import Restart
from meshnode.node.listeners import bind, bound_port
from meshnode.node.memory_plan import MemoryLimits, MemoryPlan
from meshnode.node.mesh import NoMesh
from meshnode.node.model_keeper import KeeperResources, ModelKeeper
from meshnode.node.network import Mesh, network_hash
from meshnode.node.placing import CatalogModels, EntrustedShares, MailboxShards
from meshnode.node.preflight import check_addresses, check_machine, check_models, examine_tokenizer
from meshnode.node.updating import UpdateRequests, check_updates, updates_builder
from meshnode.node.views import ModelRequests, ModelViews, NodeView
from meshnode.observe.metrics import Metrics
from meshnode.placement.auto_shard import AutoShardManager, PlacementResources, PlacementSettings
from meshnode.placement.ledger import PlacementLedger, open_ledger
from meshnode.store.opening import open_store
from meshnode.store.tables import Table
from meshnode.supervise.health import HealthBoard
from meshnode.supervise.subsystem import Pulse
from meshnode.supervise.supervisor import Supervisor
from meshnode.supervise.watchdog import ShutdownWatchdog
from meshnode.types.blocks import BlockRange

__all__ = ["Node", "open_node"]


@attrs.frozen(eq=False)
class Node:
    """A node that is put together and not started."""

    supervisor: Supervisor
    health: HealthBoard
    view: NodeView
    dashboard: Dashboard
    executors: Executors
    restart: Restart


@asynccontextmanager
async def open_node(loaded: LoadedConfig, *, metrics: Metrics, watchdog: ShutdownWatchdog) -> AsyncIterator[Node]:
    """Open everything a node needs and build its tree; leaving the context closes it all.

    Raises ConfigError or StoreError, in one line each, before anything has started. Cancellation closes what was opened.
    """
    config, lanes = loaded.config, Lanes()
    check_machine(config)
    check_updates(config)
    with hold_data_folder(config.node.data_dir) as paths:
        key = load_api_key(paths.api_key, os.environ, chosen=config.api.key)
        async with bind(config.api.host, config.api.port) as listeners, open_store(paths.store, lanes) as store:
            catalog = await open_catalog(store, paths, metrics, config.models.aliases)
            check_models(config.models.names, catalog, _sources(config, lanes, paths))
            identity = load_identity(paths.identity)
            check_addresses(loaded, identity.peer)
            addresses = await open_address_book(store, network_hash(config.network.network_id))
            if _has_network(config):  # libp2p takes a second to import: not on the loop
                await lanes.run("disk", importlib.import_module, "meshnode.network.host")
            with announce(paths, config.api.host, bound_port(listeners)):
                tables = await open_archive(store), await open_ledger(store), await open_standings(store)
                opened = Opened(config, key, listeners, catalog, identity, addresses, *tables)
                yield _connect(opened, lanes, metrics, watchdog)


@attrs.frozen(eq=False)
class Opened:
    """What the data folder and the settings gave."""

    config: NodeConfig
    key: str = attrs.field(repr=False)
    listeners: list[trio.SocketListener]
    catalog: ModelCatalog
    identity: Identity
    addresses: AddressBook
    responses: ResponseArchive
    ledger: PlacementLedger
    standings: Table[str, Standing]


def _connect(opened: Opened, lanes: Lanes, metrics: Metrics, watchdog: ShutdownWatchdog) -> Node:
    config, key, listeners, catalog = opened.config, opened.key, opened.listeners, opened.catalog
    channels, health = Channels(), HealthBoard()
    host = f"[{config.api.host}]" if ":" in config.api.host else config.api.host
    url = f"http://{host}:{bound_port(listeners)}"
    limits = MemoryLimits(config.resources.memory_bytes, config.resources.gpu_bytes)
    executors = Executors(metrics, config.engine.prefill_chunk, MemoryPlan(limits, config.engine.device))
    held = CatalogModels(catalog, executors.plan, channels.loaded, channels.offering, channels.progress)
    mesh = _mesh(opened, channels, lanes, health, metrics, held)
    models = ModelViews(catalog, channels.loaded, channels.intent, mesh.view, config.engine.context_length)
    view = NodeView(url, models, channels.progress, health, mesh)
    dashboard = Dashboard(key)
    sources = _sources(config, lanes, opened.catalog.paths)
    keeper = KeeperResources(
        catalog, channels.acquisitions, channels.progress, channels.intent, channels.wanted, health, channels.hosted
    )
    tables = ModelTables(catalog, channels.wanted, channels.loaded)
    router = RouterResources(channels.generations, tables, mesh.access(), lanes, metrics, health)
    blocks = None if config.models.blocks is None else BlockRange.parse(config.models.blocks)

    def build_acquisition(pulse: Pulse) -> AcquisitionManager:
        hub = Hub.of(os.environ, offline=config.node.offline)
        supply = Supply(sources, mesh.holders(), ShareMaker(hub, lanes, catalog.paths))
        return AcquisitionManager(catalog, channels.acquisitions, channels.progress, lanes, supply, health, pulse)

    def build_api(pulse: Pulse) -> ApiServer:
        dependencies = ApiDependencies(
            key=key,
            generate=partial(open_generations, channels.generations),
            models=models.served,
            admin=ModelRequests(channels.acquisitions, models),
            mesh=mesh,
            wishes=partial(_wishes, opened, channels),
            status=lambda: view.status(supervisor.states()),
            unready=lambda: view.unready(supervisor.states()),
            request_shutdown=supervisor.request_stop,
            metrics=metrics,
            responses=opened.responses,
            pages=dashboard.add_to,
            updates=UpdateRequests(config, channels.updates, channels.update_state),
            requests_per_minute=config.api.requests_per_minute,
            body_limit_bytes=config.api.body_limit_bytes,
            body_timeout=config.api.body_timeout,
            host=config.api.host,
        )
        return ApiServer(dependencies, listeners, _serving_limits(config), pulse)

    watches = _may_ask_hubs(config)
    builders = Builders(
        network=mesh.builders(),
        acquisition=build_acquisition,
        router=lambda pulse: InferenceRouter(router, _router_settings(config), executors.build, pulse),
        keeper=lambda: ModelKeeper(keeper, config.models.names, blocks, config.inference.boomerang),
        placement=partial(_build_placement, opened, channels, mesh, router, held) if isinstance(mesh, Mesh) else None,
        api=build_api,
        updates=updates_builder(config, channels, lanes, health, metrics, lambda: restart.request()),
        watcher=partial(_build_watcher, opened, channels, mesh, health) if watches else None,
    )
    supervisor = Supervisor(
        child_specs(builders, api_drain=config.api.drain_timeout),
        health=health,
        on_crash=lambda name: metrics.supervise_restarts_total.labels(subsystem=name).inc(),
        watchdog=watchdog,
    )
    restart = Restart(supervisor)
    return Node(supervisor, health, view, dashboard, executors, restart)


def _sources(config: NodeConfig, lanes: Lanes, paths: DataPaths) -> tuple[Source, ...]:
    return builtin_sources(
        lanes,
        offline=config.node.offline,
        environment=os.environ,
        downloads=paths.transfers,
        examine=examine_tokenizer,
    )


def _mesh(
    opened: Opened, channels: Channels, lanes: Lanes, health: HealthBoard, metrics: Metrics, held: CatalogModels
) -> Mesh | NoMesh:
    config = opened.config
    if not _has_network(config):
        return NoMesh(opened.identity.peer, channels)
    shelf = CatalogShelf(opened.catalog, _helping(opened, channels, lanes, held)) if config.transfer.share else None
    return Mesh(opened.identity, config, channels, opened.addresses, health, metrics, opened.catalog, shelf)


def _helping(opened: Opened, channels: Channels, lanes: Lanes, held: CatalogModels) -> Helping:
    hub = attrs.evolve(Hub.of(os.environ, offline=False), token=None)
    keeper = EntrustedShares(held, channels.room, channels.entrusted)
    return Helping(ShareMaker(hub, lanes, opened.catalog.paths, lent=True), keeper)


def _may_ask_hubs(config: NodeConfig) -> bool:
    """Whether this node asks hubs of its own accord."""
    return config.hub.watch and not Hub.of(os.environ, offline=config.node.offline).offline


def _build_placement(
    opened: Opened, channels: Channels, mesh: Mesh, router: RouterResources, held: CatalogModels, pulse: Pulse
) -> AutoShardManager:
    resources = PlacementResources(
        own=mesh.peer,
        members=mesh.view,
        models=held,
        shards=MailboxShards(channels.acquisitions, opened.catalog, _may_ask_hubs(opened.config)),
        ledger=opened.ledger,
        demand=router.demand,
        is_busy=lambda: channels.offering.value.sessions > 0,
        room=channels.room,
        hosted=channels.hosted,
        wishes=channels.wishes,
        nudge=channels.rebalance,
        entrusted=channels.entrusted,
        others=mesh.gateway,
        leaving=channels.leaving,
    )
    config = opened.config
    given = int(config.resources.disk_bytes) if config.transfer.share else 0  # what nobody can have is no copy
    return AutoShardManager(resources, PlacementSettings(given), pulse)


def _build_watcher(
    opened: Opened, channels: Channels, mesh: Mesh | NoMesh, health: HealthBoard, pulse: Pulse
) -> HfWatcher:
    hub, settings = Hub.of(os.environ, offline=False), opened.config.hub
    resources = WatcherResources(
        fetch=partial(fetch_trending, hub),
        standings=opened.standings,
        seen=channels.trending,
        facts=lambda: facts_of(opened.catalog, mesh.view.peers(), channels.room.value),
        health=health,
    )
    return HfWatcher(resources, WatcherSettings(_trust_rules(settings), settings.interval), pulse)


def _wishes(opened: Opened, channels: Channels) -> dict[str, object]:
    rules, listed = _trust_rules(opened.config.hub), channels.wishes.value
    found = candidates(channels.trending.value, opened.catalog.manifests(), rules, time.time())
    age = None if listed.made is None else round(trio.current_time() - listed.made, 1)
    return {"models": (*listed.wishes, *found), "age_seconds": age}


def _trust_rules(settings: HubConfig) -> TrustRules:
    publishers = frozenset(publisher.lower() for publisher in settings.publishers)
    return TrustRules(publishers, settings.min_age_hours * 3600)


def _has_network(config: NodeConfig) -> bool:
    return config.network.enabled and not config.node.offline


def _serving_limits(config: NodeConfig) -> ServingLimits:
    api = config.api
    return ServingLimits(
        write_timeout=api.write_timeout,
        keep_alive_timeout=api.keep_alive_timeout,
        max_connections=api.max_connections,
        graceful_timeout=api.drain_timeout,
    )


def _router_settings(config: NodeConfig) -> RouterSettings:
    engine, inference = config.engine, config.inference
    return RouterSettings(
        engine=EngineSettings(
            device=engine.device,
            threads=engine.threads or physical_cores(),
            context_length=engine.context_length,
            cache_bytes=engine.cache_bytes,
            max_batch=engine.max_batch,
        ),
        queue_length=inference.queue_length,
        max_concurrent=inference.max_concurrent,
        request_timeout=inference.request_timeout,
        prefill_chunk=engine.prefill_chunk,
        max_stages=inference.max_stages,
        privacy=Privacy(inference.privacy),
        boomerang=inference.boomerang,
        aliases=config.models.aliases,
    )
