"""The AutoShardManager: every few minutes it looks at the mesh, fetches what this node should hold, and lets go what it need not.

It never lets go what a person asked for, nor anything while sessions run here.
"""

import random
from collections.abc import Callable

import attrs
import structlog
import trio

from meshnode.errors import MeshnodeError, RequestError, SourceUnavailable, StoreError, Unavailable
from meshnode.flow.latest import Latest
from meshnode.flow.mailbox import Mailbox
from meshnode.flow.rates import FadingRates
from meshnode.placement.budget import budget
from meshnode.placement.decisions import decide
from meshnode.placement.ledger import PlacementLedger
from meshnode.placement.letting_go import Departure, LettingGo
from meshnode.placement.models import Segment
from meshnode.placement.picture import names_of, picture
from meshnode.placement.ports import Entrusted, MeshMembers, OtherHolders, OwnModels, Shards
from meshnode.placement.recollection import Recollection
from meshnode.placement.view import MeshState
from meshnode.placement.wishlist import Wishlist, wishlist
from meshnode.supervise.subsystem import Pulse
from meshnode.types.blocks import BlockRange
from meshnode.types.ids import ModelId, PeerId, short
from meshnode.types.peers import Room
from meshnode.types.segments import segments_of

__all__ = ["AutoShardManager", "PlacementResources", "PlacementSettings"]

_PULSE_EVERY = 5.0  # seconds
_GOSSIP_PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds
_LEAST_RATE = 0.01  # requests per hour that are worth telling
_MAX_TOLD = 64  # models
_FOLLOW_PAUSE = 1.0  # seconds; while a model is verified, shards are noted one by one
_LONGEST_FETCH = 2 * 3600.0  # seconds; what has come then is kept for the next time
_log = structlog.get_logger(__name__)


@attrs.frozen
class PlacementSettings:
    """What the owner of this machine allows."""

    disk_bytes: (
        int  # of shards that are held of the node's own accord; 0: none, the node only tells what it is asked for
    )
    interval: float = 300.0  # seconds between two looks
    first: float = 30.0  # seconds to the first
    limit: int = 2  # segments fetched per look
    patience: float = 1800.0  # seconds before a segment that could not be fetched is tried again


@attrs.frozen(eq=False)
class PlacementResources:
    """What outlives an incarnation."""

    own: PeerId
    members: MeshMembers
    models: OwnModels
    shards: Shards
    ledger: PlacementLedger
    demand: FadingRates[ModelId]
    is_busy: Callable[[], bool]  # whether sessions run here
    room: Latest[Room | None]  # what we tell others; written by the manager alone
    hosted: Latest[frozenset[ModelId]]  # models that are held of the node's own accord, to be loaded
    wishes: Latest[Wishlist]
    nudge: Latest[int]  # from the ShardRebalancer: somebody has come or gone for good
    entrusted: Mailbox[Entrusted, None]  # shares that this node has made for somebody
    others: OtherHolders
    leaving: Latest[Departure | None]  # what it is about to let go, and does not vouch for


@attrs.frozen
class _Fetch:
    """A segment that this node is going to fetch."""

    blocks: BlockRange
    nbytes: int
    is_begun: bool  # a person has put a part of it here
    is_lost: bool  # nobody here has it, so it comes from outside


@attrs.define(eq=False)
class AutoShardManager:
    """One incarnation."""

    _resources: PlacementResources
    _settings: PlacementSettings
    _pulse: Pulse
    _started: float = attrs.field(factory=trio.current_time, init=False)
    _fetching: dict[Segment, _Fetch] = attrs.field(factory=dict, init=False)
    _seen: frozenset[ModelId] = attrs.field(default=frozenset(), init=False)  # models that were here at the last look
    _recollection: Recollection = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._recollection = Recollection(self._settings.patience)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look and act until cancelled; what is being fetched then is kept for the next time."""
        shared = self._resources
        shared.hosted.set(frozenset(segment.model for segment in shared.ledger.own_accord()))
        self._tell()
        task_status.started()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_pulse)
            nursery.start_soon(self._follow_models)
            nursery.start_soon(self._take_entrusted)
            await self._wait(self._settings.first)
            while True:
                await self._look(nursery)
                await self._wait(self._settings.interval * random.uniform(0.9, 1.1))  # noqa: S311  # not in step with others

    async def drain(self) -> None:
        """Nothing to do: fetching may be cancelled."""

    async def _keep_pulse(self) -> None:
        while True:
            self._pulse.touch()
            await trio.sleep(_PULSE_EVERY)

    async def _follow_models(self) -> None:
        """Tell anew what the mesh lacks when something has come or gone here, without waiting for the next look."""
        async for _ in self._resources.models.revision.values():
            self._tell()
            await trio.sleep(_FOLLOW_PAUSE)

    async def _wait(self, seconds: float) -> None:
        nudge = self._resources.nudge
        with trio.move_on_after(seconds):
            await nudge.changed(nudge.version)

    async def _look(self, nursery: trio.Nursery) -> None:
        """Begin to fetch, and let go: a fetch that takes long, or is stuck, stops no look."""
        shared, now = self._resources, trio.current_time()
        shared.leaving.set(None)  # an earlier incarnation may have ended while it let something go
        removed = await self._heed_removals()
        state = self._state(self._room())
        droppable = frozenset() if shared.is_busy() else self._own_accord()
        kept = state.members[shared.own].held - droppable
        known, unwanted = self._recollection, shared.ledger.refused() | removed | shared.models.unchecked().keys()
        known.look(state, now, shared.shards.comes_from_outside)
        decision = decide(
            state,
            shared.own,
            kept=kept,
            limit=self._settings.limit - len(self._fetching),
            can_fetch=lambda segment: segment.model not in unwanted and known.can_fetch(segment, now),
            waited=lambda segment: known.waited(segment, now),
        )
        self._fetching |= {segment: _fetch(state, shared.own, segment) for segment in decision.acquire}
        if decision.acquire:
            shared.room.set(self._room())  # what is claimed here nobody else is to fetch
        for segment in decision.acquire:
            nursery.start_soon(self._acquire, segment, self._fetching[segment])
        here = shared.models.known()
        gone = await self._let_go(state, decision.drop)
        self._tell()
        self._seen = shared.models.known() | (here - gone) | (removed - shared.ledger.refused())

    async def _heed_removals(self) -> frozenset[ModelId]:
        """Return what a person has removed since the last look, and note not to fetch it back until somebody adds it again.

        What cannot be noted, on a full disk, is noted at the next look.
        """
        ledger, here = self._resources.ledger, self._resources.models.known()
        removed = self._seen - here
        try:
            for model in removed:
                for segment in [each for each in ledger.own_accord() if each.model == model]:
                    await ledger.discard(segment)
                await ledger.refuse(model)
            for model in ledger.refused() & here:
                await ledger.welcome(model)
        except StoreError as error:
            _log.warning("removal not recorded", error=str(error))
        return removed

    async def _acquire(self, segment: Segment, fetch: _Fetch) -> None:
        """Fetch a segment. One that a person has put a part of here becomes theirs, and stays."""
        shared, told = self._resources, {"model": short(segment.model), "blocks": str(fetch.blocks)}
        _log.info("fetching a part that the mesh lacks", from_outside=fetch.is_lost, **told)
        acquire = shared.shards.acquire_from_outside if fetch.is_lost else shared.shards.acquire
        try:
            if not fetch.is_begun:
                await shared.ledger.add(segment)
            shared.hosted.set(shared.hosted.value | {segment.model})
            with trio.move_on_after(_LONGEST_FETCH) as patience:
                await acquire(segment.model, fetch.blocks)
            if patience.cancelled_caught:
                raise SourceUnavailable(f"not all has come in {_LONGEST_FETCH / 3600:.0f} hours; what has is kept")
        except MeshnodeError as error:
            self._recollection.note_failed(segment, trio.current_time())
            _log.warning("part not fetched", error=str(error), **told)
            if not fetch.is_begun:
                await self._forget(segment)
        finally:
            del self._fetching[segment]
        self._tell()

    async def _take_entrusted(self) -> None:
        with self._resources.entrusted.serve() as letters:
            async for letter in letters:
                try:
                    await self._keep(letter.question)
                except MeshnodeError as error:
                    _log.warning("share not kept", model=short(letter.question.model), error=str(error))
                    letter.refuse(error)
                else:
                    letter.answer(None)

    async def _keep(self, share: Entrusted) -> None:
        """Hold a share as if it had been fetched from somebody. Raises MeshnodeError leafs; nothing is held then."""
        shared = self._resources
        if not self._settings.disk_bytes:
            raise Unavailable("this node gives no room to others' models: its resources.disk_bytes is 0")
        if share.model in shared.ledger.refused():
            raise Unavailable(
                f"a person has removed {short(share.model)} here: no share of it is taken until it is added again"
            )
        segments = [
            Segment(share.model, index)
            for index, blocks in enumerate(segments_of(share.block_count))
            if blocks.is_covered_by([share.blocks])
        ]
        if not segments:
            raise RequestError(f"blocks {share.blocks} of {share.block_count} are no share")
        try:
            for segment in segments:
                await shared.ledger.add(segment)
            shared.hosted.set(shared.hosted.value | {share.model})
            await self._keep_announced(share)
        except MeshnodeError:
            for segment in segments:
                await self._forget(segment)
            raise
        self._tell()

    async def _keep_announced(self, share: Entrusted) -> None:
        """Keep what another node has just begun to announce: gossip takes a moment."""
        for pause in _GOSSIP_PAUSES:
            try:
                return await self._resources.shards.keep(share, self._left(share.nbytes))
            except SourceUnavailable:
                await trio.sleep(pause)
        return await self._resources.shards.keep(share, self._left(share.nbytes))

    async def _let_go(self, state: MeshState, segments: tuple[Segment, ...]) -> frozenset[ModelId]:
        """Let segments go that others keep; return the models of those that have gone."""
        shared, gone = self._resources, set[ModelId]()
        letting_go = LettingGo(state, shared.own, shared.shards, shared.others, shared.leaving)
        for segment in segments:
            # While others were asked, a session may have begun, or a person may have asked for the model.
            if await letting_go.let_go(segment, lambda: not shared.is_busy() and segment in self._own_accord()):  # noqa: B023
                self._recollection.note_let_go(segment, trio.current_time())
                await self._forget(segment)
                gone.add(segment.model)
        return frozenset(gone)

    async def _forget(self, segment: Segment) -> None:
        try:
            await self._resources.ledger.discard(segment)
        except MeshnodeError as error:
            _log.warning("placement not recorded", error=str(error))

    # What is known, and told

    def _own_accord(self) -> frozenset[Segment]:
        """Return what may be let go: what was fetched without a person asking, of models of which a person asked for nothing."""
        pinned = self._pinned()
        return frozenset(each for each in self._resources.ledger.own_accord() if each.model not in pinned)

    def _pinned(self) -> frozenset[ModelId]:
        """Return the models that a person asked for here, or of which something was here before this node fetched any."""
        automatic = self._resources.ledger.own_accord()
        alone = picture(self._resources.own, self._resources.models.holdings(), Room(), ())
        member = alone.members[self._resources.own]
        before = frozenset(segment.model for segment in {*member.held, *member.loose} - automatic)
        return before | self._resources.models.pinned()

    def _state(self, room: Room) -> MeshState:
        shared = self._resources
        return picture(shared.own, shared.models.holdings(), room, shared.members.peers(), shared.models.stages())

    def _left(self, lying: int) -> int:
        """Return how many bytes more there is room for, of which `lying` are on the disk already."""
        room = self._room(lying)
        return room.budget - room.coming - sum(holding.nbytes for holding in self._resources.models.holdings())

    def _room(self, lying: int = 0) -> Room:
        shared, pinned = self._resources, self._pinned()
        fetching = {segment.model for segment in self._fetching}
        # What is being verified after a restart is on its way too: nobody else need fetch it meanwhile.
        unchecked = [(model, blocks) for model, every in shared.models.unchecked().items() for blocks in every]
        rates = sorted(shared.demand.per_hour().items(), key=lambda each: -each[1])
        return Room(
            budget=budget(shared.models, pinned, fetching, self._settings.disk_bytes, lying),
            uptime=trio.current_time() - self._started,
            fetching=(
                *((segment.model, fetch.blocks) for segment, fetch in self._fetching.items()),
                *unchecked[:_MAX_TOLD],
            ),
            coming=sum(fetch.nbytes for fetch in self._fetching.values()),
            demand=tuple((model, round(rate, 2)) for model, rate in rates if rate >= _LEAST_RATE)[:_MAX_TOLD],
            pinned=tuple(sorted(pinned))[:_MAX_TOLD],
        )

    def _tell(self) -> None:
        shared, room = self._resources, self._room()
        shared.room.set(room)
        names = names_of(shared.models.holdings(), shared.members.peers())
        wishes = wishlist(self._state(room), shared.own, names, self._fetching)
        shared.wishes.set(Wishlist(wishes, trio.current_time()))


def _fetch(state: MeshState, own: PeerId, segment: Segment) -> _Fetch:
    """Return what is to come of a segment, of which blocks may be here."""
    facts, here = state.models[segment.model], state.members[own].loose.get(segment, frozenset())
    blocks = facts.blocks(segment.index)
    lacking = (len(blocks) - len(here)) * facts.block_bytes
    return _Fetch(BlockRange(blocks.start, blocks.stop), lacking, bool(here), state.is_lost(segment))
