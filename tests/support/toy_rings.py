"""The rings of toy executors, on virtual time: links between them that are none of their daemons'."""

import attrs
import trio

from meshnode.engine.executor import RingSign, RingToken
from meshnode.engine.ring_events import RingEvents
from meshnode.errors import MeshnodeError, RingBroken, WorkerLost
from meshnode.types.generation import TokenEvent
from meshnode.wire.ring_messages import TOKEN_BYTES, Lap, RingDoor

__all__ = ["ToyRings"]


@attrs.define(eq=False)
class _Member:
    """One session's place in its ring."""

    executor: object
    session: str
    peer: str  # whose executor it is
    token: bytes  # that the one before it will show
    events: RingEvents | None = None
    before: "_Member | None" = None
    behind: "_Member | None" = None
    is_entered: bool = False
    tells: bool = False  # its daemon of tokens


@attrs.define(eq=False)
class ToyRings:
    """All of one network in memory, which says how long a lap travels, who is frozen, who is cut off, and who lies."""

    network: object
    laps: list = attrs.field(factory=list)  # (from, to, message, body), also those within a node
    _members: dict = attrs.field(factory=dict)  # by executor and session
    _given: int = 0  # tokens

    # What an executor does

    def expect(self, executor, session, place):
        self.leave(executor, session)
        self._given += 1
        token = self._given.to_bytes(TOKEN_BYTES, "little")
        self._members[executor, session] = _Member(executor, session, place.hosts[0], token)
        return RingDoor(place.hosts, 1, bytes(32), token)

    def enter(self, executor, session, door, tells):
        """Return the events of the session's ring."""
        member, events = self._members.get((executor, session)), RingEvents()
        if member is None or member.events is not None:
            events.end(RingBroken("the session has no place in a ring here"))
        else:
            member.events, member.tells = events, tells
            self.network.nursery.start_soon(self._dial, member, door)
        return events

    def hand_on(self, executor, session, lap, body):
        member = self._members.get((executor, session))
        if member is None or member.behind is None:
            return
        own, peer = member.peer, member.behind.peer
        self.laps.append((own, peer, lap, body))
        for late, *sent in [(0.0, lap, body)] if own == peer else self._sent(own, peer, lap, body):
            self.network.nursery.start_soon(self._carry, member, late, *sent)

    def sampled(self, executor, session, step, event):
        """Send a token round; it is told of here, or where it comes to."""
        tells = self.tell(executor, session, step.number, step.position, event)
        event = TokenEvent(event.token) if tells else event
        self.hand_on(executor, session, Lap(0, step.number + 1, step.position + 1, event), b"")

    def tell(self, executor, session, step, position, event):
        """Tell of a token where that is done; return whether it is."""
        member = self._members.get((executor, session))
        if member is None or not member.tells:
            return False
        member.events.push(RingToken(step, position, event))
        return True

    def go_on(self, executor, session, lap, body):
        """Take up what was held."""
        self.network.nursery.start_soon(self._take, self._members[executor, session], executor.go_round, lap, body)

    def leave(self, executor, session):
        member = self._members.pop((executor, session), None)
        if member is not None and member.behind is not None:
            member.behind.before = None
        return member

    def fail(self, member, error):
        """Take a session out of its ring for a reason, unless it has left."""
        if self._members.get((member.executor, member.session)) is member:
            self.leave(member.executor, member.session)
            if member.events is not None:
                member.events.end(error)

    def end(self, executor):
        """All that has to do with an executor that ends."""
        for member in list(self._members.values()):
            if member.executor is executor:
                self.fail(member, WorkerLost("the worker process ended"))
            elif executor in (getattr(member.before, "executor", None), getattr(member.behind, "executor", None)):
                self.fail(member, RingBroken("the other worker is gone"))

    def sessions(self, but=()):
        """Return who is in a ring, or waits for one, without those of some peers."""
        return [(each.peer, each.session) for each in self._members.values() if each.peer not in but]

    # What befalls links

    def part(self, one, other):
        """End the links between two nodes' executors; the nodes do not notice."""
        for member in list(self._members.values()):
            for neighbour in (member.before, member.behind):
                if neighbour is not None and {member.peer, neighbour.peer} == {one, other}:
                    self.fail(member, RingBroken("the other worker is gone"))

    async def _dial(self, member, door):
        (peer,) = door.hosts
        await trio.sleep(2 * self._latency(member.peer, peer))
        await self._awake(peer)
        other = next((each for each in self._members.values() if each.token == door.token and not each.before), None)
        if other is None or self._is_apart(member.peer, peer):
            self.fail(member, RingBroken("the next worker cannot be reached"))
            return
        member.behind, other.before = other, member
        for each in (member, other):
            if each.before is not None and each.behind is not None and not each.is_entered:
                each.is_entered = True
                each.events.push(RingSign.ENTERED)

    async def _carry(self, member, late, lap, body):
        behind, at = member.behind, trio.current_time() + late
        await self._awake(member.peer)
        await trio.sleep_until(at)
        await self._awake(behind.peer)
        if self._is_apart(member.peer, behind.peer):
            self.part(member.peer, behind.peer)
        if behind.before is member:
            await self._take(behind, behind.executor.lap, lap, body)

    async def _take(self, member, take, lap, body):
        if self._members.get((member.executor, member.session)) is not member:
            return  # it has left meanwhile
        try:
            await take(member.session, lap, body)
        except MeshnodeError as error:
            self.fail(member, error)

    # What the network says

    def _latency(self, own, peer):
        return self.network.latency()

    def _sent(self, own, peer, lap, body):
        """Return what goes out instead, and how late each comes."""
        self.network.seen.append((own, peer, lap, body))
        sent = self.network.tamper(own, peer, lap, body)
        return [(late + self._latency(own, peer), *each) for late, *each in sent]

    async def _awake(self, peer):
        while (node := self.network.nodes.get(peer)) is not None and node.frozen:
            await node.thawed.wait()

    def _is_apart(self, one, other):
        return not {one, other} <= set(self.network.nodes) or self.network.cut(one, other)
