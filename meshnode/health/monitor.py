"""The HealthMonitor: tells who joined and who left, and keeps the evidence against peers.

Links themselves notice silence (heartbeats, three misses). What they notice arrives here as changes of the peer table; what
peers do wrong arrives as evidence. Trust recovers: half of what is held against a peer is forgotten every hour.
"""

from collections.abc import Iterable, Mapping

import attrs
import structlog
import trio

from meshnode.flow.broadcast import Broadcast
from meshnode.flow.changes import Changes
from meshnode.flow.latest import Latest
from meshnode.flow.mailbox import Mailbox
from meshnode.network.peers import PeerView
from meshnode.observe.metrics import Metrics
from meshnode.supervise.health import HealthBoard
from meshnode.supervise.subsystem import Pulse
from meshnode.types.evidence import Evidence
from meshnode.types.ids import ModelId, PeerId, short
from meshnode.types.peers import Liveness, Offering, PeerInfo

__all__ = ["HealthMonitor", "HealthResources", "MembershipEvent", "PeerJoined", "PeerLeft"]

_LOOK_EVERY = 1.0  # seconds
_HALF_LIFE = 3600.0  # seconds in which evidence loses half of its weight
_MAX_PEERS = 4096
_ALONE_AFTER = 30.0  # seconds without anybody before it is a condition

_log = structlog.get_logger(__name__)


@attrs.frozen
class PeerJoined:
    """A peer can be reached."""

    peer: PeerId


@attrs.frozen
class PeerLeft:
    """A peer cannot be reached any more."""

    peer: PeerId


MembershipEvent = PeerJoined | PeerLeft


@attrs.frozen(eq=False)
class HealthResources:
    """What outlives an incarnation of the monitor."""

    peers: PeerView
    evidence: Mailbox[Evidence, None]
    failures: Latest[Mapping[PeerId, int]]  # written by the monitor alone: weight of the evidence per peer
    events: Broadcast[MembershipEvent]
    health: HealthBoard
    metrics: Metrics
    offering: Latest[Offering] = attrs.field(factory=lambda: Latest(Offering()))  # of this node


@attrs.define(eq=False)
class HealthMonitor:
    """One incarnation; what it knew of misbehaviour is kept in `failures`."""

    _resources: HealthResources
    _pulse: Pulse
    _expects_peers: bool  # somebody was named to connect to
    _alive: frozenset[PeerId] = attrs.field(default=frozenset(), init=False)
    _weights: dict[PeerId, float] = attrs.field(factory=dict, init=False)
    _dropped: int = attrs.field(default=0, init=False)  # pieces of evidence, as far as they are counted
    _alone_since: float | None = attrs.field(default=None, init=False)
    _changes: Changes = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        shared = self._resources
        self._changes = Changes((shared.peers.changed, shared.failures, shared.offering))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Watch until cancelled."""
        self._weights = dict(self._resources.failures.value)
        self._dropped = self._resources.evidence.refused
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._collect)
            task_status.started()
            while True:
                self._pulse.touch()
                self._look()
                await trio.sleep(_LOOK_EVERY)

    async def drain(self) -> None:
        """Nothing to do."""

    async def _collect(self) -> None:
        with self._resources.evidence.serve() as letters:
            async for letter in letters:
                self._weigh(letter.question)

    def _weigh(self, evidence: Evidence) -> None:
        label = evidence.misdeed.label
        self._resources.metrics.network_misdeeds_total.labels(kind=label).inc()
        _log.warning("peer misbehaved", peer=short(evidence.peer), kind=label, detail=evidence.detail[:200])
        if evidence.peer not in self._weights and len(self._weights) >= _MAX_PEERS:
            del self._weights[min(self._weights, key=lambda peer: self._weights[peer])]
        self._weights[evidence.peer] = self._weights.get(evidence.peer, 0.0) + evidence.misdeed.weight

    def _look(self) -> None:
        resources = self._resources
        faded = 0.5 ** (_LOOK_EVERY / _HALF_LIFE)
        self._weights = {peer: weight * faded for peer, weight in self._weights.items() if weight > 0.1}
        self._tell()  # here, not with each piece of evidence: a flood of it costs one round, and is acted on in a second
        if self._changes.there_are():
            self._tell_membership()
        refused = resources.evidence.refused
        resources.metrics.network_evidence_dropped_total.inc(refused - self._dropped)
        self._dropped = refused
        self._watch_loneliness()

    def _tell_membership(self) -> None:
        resources = self._resources
        peers = resources.peers.peers()
        alive = frozenset(peer.peer for peer in peers if _is_there(peer))
        for peer in alive - self._alive:
            resources.events.publish(PeerJoined(peer))
        for peer in self._alive - alive:
            resources.events.publish(PeerLeft(peer))
        self._alive = alive
        resources.metrics.network_peers.set(len(alive))
        resources.metrics.network_disputed_names.set(_disputed(peers, resources.offering.value))

    def _watch_loneliness(self) -> None:
        health, now = self._resources.health, trio.current_time()
        if self._alive or not self._expects_peers:
            self._alone_since = None
            health.clear_condition("no_peers", "HealthMonitor")
            return
        self._alone_since = now if self._alone_since is None else self._alone_since
        if now - self._alone_since >= _ALONE_AFTER:
            health.raise_condition(
                "no_peers",
                "HealthMonitor",
                "none of the known peers can be reached; check their addresses and firewalls",
            )

    def _tell(self) -> None:
        rounded = {peer: round(weight) for peer, weight in self._weights.items() if round(weight)}
        if rounded != self._resources.failures.value:
            self._resources.failures.set(rounded)


def _disputed(peers: Iterable[PeerInfo], own: Offering) -> int:
    """Count the names that mean other weights on one node than on another."""
    models: dict[str, set[ModelId]] = {}
    for stages in (own.stages, *(peer.offer.stages for peer in peers if peer.offer is not None)):
        for stage in stages:
            models.setdefault(stage.name, set()).add(stage.model)
    return sum(len(each) > 1 for each in models.values())


def _is_there(peer: PeerInfo) -> bool:
    return peer.liveness is not Liveness.DEAD and (peer.connected or peer.offer is not None)
