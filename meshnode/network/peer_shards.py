"""Who holds which shards, from what peers say of themselves, and how to get them."""

from contextlib import AbstractAsyncContextManager

import attrs
import trio

from meshnode.flow.mailbox import Mailbox
from meshnode.network.bulk_lines import BulkLine
from meshnode.network.gateway import StageGateway
from meshnode.network.peers import PeerTable
from meshnode.types.evidence import Evidence, Misdeed
from meshnode.types.ids import ModelId, PeerId
from meshnode.types.model_names import ModelNames
from meshnode.types.peers import Holding, Liveness

__all__ = ["KnownHolders"]


@attrs.frozen(eq=False)
class KnownHolders:
    """Reads the table of peers; nothing is kept here."""

    table: PeerTable
    gateway: StageGateway
    evidence: Mailbox[Evidence, None]

    def models(self) -> tuple[ModelNames, ...]:
        """Return what peers hold, whole or in part, each model once."""
        found = {holding.model: holding for _, holding in self._holdings()}
        return tuple(ModelNames(holding.model, holding.name, holding.aliases) for holding in found.values())

    def of_repository(self, repository: str) -> frozenset[ModelId]:
        """Return the models that peers say they have from a repository of a hub."""
        return frozenset(holding.model for _, holding in self._holdings() if holding.repository == repository)

    def holders(
        self, model: ModelId, block: int | None, *, embedding: bool = False, head: bool = False
    ) -> frozenset[PeerId]:
        """Return who holds a block, or an end, or (with none of them) anything of a model."""
        return frozenset(
            peer
            for peer, holding in self._holdings()
            if holding.model == model
            and (block is None or holding.has(block))
            and (holding.embedding or not embedding)
            and (holding.head or not head)
        )

    def helpers(self) -> dict[PeerId, int]:
        """Return who gives room for parts of models, and how many bytes more."""
        there = [info for info in self.table.peers() if info.connected and info.liveness is Liveness.ALIVE]
        return {info.peer: info.offer.room_bytes for info in there if info.offer is not None and info.offer.room_bytes}

    def line(self, peer: PeerId) -> AbstractAsyncContextManager[BulkLine]:
        """Connect to a peer. Raises PeerUnreachable and PeerRefused on entry."""
        return self.gateway.fetching_from(peer)

    def accuse(self, peer: PeerId, what: str) -> None:
        """Hold against a peer that it sent other bytes than the manifest says."""
        try:
            self.evidence.tell_nowait(Evidence(peer, Misdeed.WRONG_BYTES, what))
        except trio.WouldBlock:
            return  # as much is waiting already against somebody

    def _holdings(self) -> list[tuple[PeerId, Holding]]:
        return [
            (info.peer, holding)
            for info in self.table.peers()
            if info.offer is not None and info.liveness is not Liveness.DEAD
            for holding in info.offer.holdings
        ]
