"""Who is out there: addresses, links, offers, and what the failure detector makes of them.

The table is written by the NetworkManager alone. It outlives its incarnations, and its addresses outlive the process: the
peer cache is merged with what is learnt, never rebuilt from who happens to be connected.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import attrs
import trio

from meshnode.flow.latest import Latest
from meshnode.network.addresses import chosen
from meshnode.types.ids import PeerId
from meshnode.types.peers import Liveness, Offer, PeerInfo

__all__ = ["ControlLink", "PeerTable", "PeerView"]

_MAX_PEERS = 4096
_MAX_ADDRESSES = 8  # per peer
_BANNED_AT = 20  # failures after which a peer takes part in nothing


class ControlLink(Protocol):
    """What the table reads of a link."""

    @property
    def peer(self) -> PeerId:
        """Who is at the other end."""
        ...

    @property
    def rtt(self) -> float | None:
        """Seconds of a round trip."""
        ...

    @property
    def missed(self) -> int:
        """Heartbeats in a row without an answer."""
        ...

    @property
    def is_relayed(self) -> bool:
        """Whether a third node carries it."""
        ...


class PeerView(Protocol):
    """What everybody may ask."""

    @property
    def changed(self) -> Latest[int]:
        """Set when anything below is."""
        ...

    def peers(self) -> tuple[PeerInfo, ...]:
        """Return all peers, ourselves not among them."""
        ...


@attrs.define(eq=False)
class _Known:
    addresses: tuple[str, ...] = ()  # newest success first
    offer: Offer | None = None
    link: ControlLink | None = None
    links: int = 0  # so far
    lan: bool = False
    is_gone: bool = False  # its link ended and it has said nothing new since
    seen: float = attrs.field(factory=trio.current_time)


@attrs.define(eq=False)
class PeerTable:
    """One row per peer."""

    own: PeerId
    failures: Latest[Mapping[PeerId, int]]  # written by the HealthMonitor
    pool: Latest[frozenset[PeerId]] = attrs.field(factory=lambda: Latest(frozenset()))  # members of our pools
    changed: Latest[int] = attrs.field(factory=lambda: Latest(0), init=False)
    _rows: dict[PeerId, _Known] = attrs.field(factory=dict, init=False)

    # Readers

    def peers(self) -> tuple[PeerInfo, ...]:
        """Return all peers, those with many failures apart."""
        return tuple(info for info in map(self._info, self._rows) if info.failures < _BANNED_AT)

    def peer(self, peer: PeerId) -> PeerInfo | None:
        """Return one peer."""
        return self._info(peer) if peer in self._rows else None

    def is_banned(self, peer: PeerId) -> bool:
        """Whether a peer has done too much that no honest one does."""
        return self.failures.value.get(peer, 0) >= _BANNED_AT

    def banned(self) -> tuple[PeerId, ...]:
        """Return all of those."""
        return tuple(filter(self.is_banned, self.failures.value))

    # The writer

    def learn(self, peer: PeerId, addresses: Sequence[str], *, worked: bool = False) -> None:
        """Add addresses; one that has worked goes to the front."""
        if peer == self.own:
            return
        row = self._row(peer)
        merged = (*addresses, *row.addresses) if worked else (*row.addresses, *addresses)
        addresses = chosen(merged, _MAX_ADDRESSES)
        if addresses != row.addresses:
            row.addresses = addresses
            self._tell()

    def linked(self, link: ControlLink, *, lan: bool) -> None:
        """Note that a control link is up; `lan` says that it goes directly to a private address."""
        row = self._row(link.peer)
        row.link, row.lan, row.is_gone = link, lan, False
        row.links += 1
        self._tell()

    def unlinked(self, link: ControlLink, *, is_gone: bool = True) -> None:
        """Note that a link has ended: unless another took its place, the peer is dead until it says something new.

        One that `is_gone` is not said of is known by hearsay from now on.
        """
        row = self._rows.get(link.peer)
        if row is not None and row.link is link:
            row.link, row.is_gone = None, is_gone
            row.offer = None if is_gone else row.offer
            self._tell()

    def heard(self, offer: Offer) -> None:
        """Take what a peer says of itself."""
        row = self._row(offer.peer)
        row.offer, row.is_gone = offer, False
        worked = [address for address in row.addresses if address in offer.addresses]
        row.addresses = chosen((*worked, *offer.addresses, *row.addresses), _MAX_ADDRESSES)
        self._tell()

    def forget_offer(self, peer: PeerId) -> None:
        """Drop what a peer that is not linked has said: it has expired, or the peer cannot be found. Something newer counts."""
        row = self._rows.get(peer)
        if row is not None and row.link is None:
            row.offer, row.is_gone = None, True
            self._tell()

    def _row(self, peer: PeerId) -> _Known:
        row = self._rows.get(peer)
        if row is None:
            if len(self._rows) >= _MAX_PEERS:
                self._make_room()
            row = self._rows[peer] = _Known()
        row.seen = trio.current_time()
        return row

    def _make_room(self) -> None:
        """Drop the unlinked peer that has not been heard of for longest."""
        unlinked = [peer for peer, row in self._rows.items() if row.link is None]
        if unlinked:
            del self._rows[min(unlinked, key=lambda peer: self._rows[peer].seen)]

    def _tell(self) -> None:
        self.changed.set(self.changed.value + 1)

    def _info(self, peer: PeerId) -> PeerInfo:
        row, link = self._rows[peer], self._rows[peer].link
        if link is not None:
            liveness = Liveness.SUSPECT if link.missed else Liveness.ALIVE
        else:
            liveness = Liveness.DEAD if row.is_gone or row.offer is None else Liveness.SUSPECT
        return PeerInfo(
            peer=peer,
            liveness=liveness,
            connected=link is not None,
            relayed=link is not None and link.is_relayed,
            lan=link is not None and row.lan,
            pool=peer in self.pool.value,
            round_trip=None if link is None else link.rtt,
            offer=row.offer,
            addresses=row.addresses,
            failures=self.failures.value.get(peer, 0),
            links=row.links,
        )
