"""Provider records: tells the hash table which shards this node holds, and asks it for those that nobody near has.

Peers that are linked, or known by gossip, say themselves what they offer. The table is for the rest: a model of which a part is
missing leads to look-ups, what they find is learnt like any other address, and the NetworkManager dials it.
"""

from collections.abc import Iterator

import attrs
import structlog
import trio

from meshnode.flow.changes import Changes
from meshnode.network.dialing import Dialling
from meshnode.network.holdings import Holdings
from meshnode.network.host_ports import Host
from meshnode.network.peers import PeerTable
from meshnode.types.ids import PeerId, ShardId, short
from meshnode.types.manifest import ModelManifest, ShardDescriptor, ShardKind
from meshnode.types.peers import StageOffer

__all__ = ["Providing"]

MAX_KEYS = 512  # records of one node; others keep no more
_PACE = 0.5  # seconds between two records
_LOOK_EVERY = 5.0  # seconds
_LOOK_UPS = 8  # in one go
_FIRST_PAUSE, _LONGEST_PAUSE = 10.0, 600.0  # seconds between two look-ups of the same

_log = structlog.get_logger(__name__)


@attrs.define(eq=False)
class Providing:
    """The records of one incarnation of the network; its host renews them."""

    _host: Host
    _holdings: Holdings
    _table: PeerTable
    _sought: set[PeerId]  # gets those that are found to hold what is missing
    _provided: set[ShardId] = attrs.field(factory=set, init=False)
    _asking: Dialling[ShardId] = attrs.field(
        factory=lambda: Dialling(first_pause=_FIRST_PAUSE, longest_pause=_LONGEST_PAUSE), init=False
    )

    async def announce(self) -> None:
        """Keep the records to what is held, until cancelled."""
        revision = self._holdings.revision
        while True:
            seen = revision.version
            held = self._held()
            for shard in self._provided - held:
                self._host.withdraw(shard.encode())
            self._provided &= held
            for shard in sorted(held - self._provided):
                await self._until_connected()
                await self._host.provide(shard.encode())
                self._provided.add(shard)
                await trio.sleep(_PACE)
                if revision.version != seen:
                    break
            await revision.changed(seen)

    async def look(self) -> None:
        """Look for holders of what is missing, until cancelled."""
        changes, missing = Changes((self._table.changed, self._holdings.revision)), list[ShardId]()
        while True:
            await trio.sleep(_LOOK_EVERY)  # gossip comes first: it costs nothing
            await self._until_connected()
            if changes.there_are():
                missing = self._missing()
            for shard in self._asking.due(missing)[:_LOOK_UPS]:
                await self._look_up(shard)

    async def _look_up(self, shard: ShardId) -> None:
        found = await self._host.find_providers(shard.encode())
        for peer, addresses in found:
            self._table.learn(peer, addresses)
        news = {peer for peer, _ in found} - self._sought
        if news:
            _log.info("holders of a missing shard found", shard=shard[:8], peers=sorted(map(short, news)))
        if len(self._sought) >= MAX_KEYS:
            self._sought.clear()
        self._sought.update(news)
        self._asking.failed(shard)  # until it is offered; who was found may be gone by now

    async def _until_connected(self) -> None:
        while not self._host.members():  # noqa: ASYNC110  # the host tells nobody who comes and goes
            await trio.sleep(_PACE)

    def _held(self) -> frozenset[ShardId]:
        every = sorted(shard for manifest in self._holdings.manifests() for shard in self._holdings.held(manifest.id))
        if len(set(every)) > MAX_KEYS:
            _log.warning("not all shards can be announced", shards=len(set(every)), announced=MAX_KEYS)
        return frozenset(every[:MAX_KEYS])

    def _missing(self) -> list[ShardId]:
        """Return what nobody who is known offers: one shard of each gap, for who holds its neighbours is found with it."""
        offers = [stage for info in self._table.peers() if info.offer is not None for stage in info.offer.stages]
        return [
            shard
            for manifest in self._holdings.manifests()
            for shard in _gaps(manifest, self._holdings.held(manifest.id), offers)
        ]


def _gaps(manifest: ModelManifest, held: frozenset[ShardId], offers: list[StageOffer]) -> Iterator[ShardId]:
    ours = [offer for offer in offers if offer.model == manifest.id]
    in_gap = False
    for shard in manifest.shards:
        if shard.kind is ShardKind.TOKENIZER:
            continue
        is_missing = shard.id not in held and not any(_has(offer, shard) for offer in ours)
        if is_missing and not in_gap:
            yield shard.id
        in_gap = is_missing


def _has(offer: StageOffer, shard: ShardDescriptor) -> bool:
    if shard.block is not None:
        return shard.block in offer.blocks
    return offer.embedding if shard.kind is ShardKind.EMBEDDING else offer.head
