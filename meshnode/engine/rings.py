"""The worker's part in the rings of its sessions: who hands a session's rows to it, and to whom it hands them on.

    expect ── a token for the worker before ──► attached ┐
    enter ─── dialled, our token shown ───────► attached ┴► entered ── laps ──► leave

Links are shared by all sessions that go the same way, and stay for the next ones. A link that ends takes its sessions out of
their rings, which their daemons hear of; nothing else about them is lost.
"""

import secrets
import select
import time
from collections.abc import Callable

import attrs

from meshnode.engine.ring_doors import Arrived, Dialled, DoorKey, RingDoors, key_of
from meshnode.engine.ring_socket import RingSocket
from meshnode.engine.worker_messages import Answer, DoorOpened, Envelope, Lapped, RingEntered, Turning
from meshnode.errors import FrameTooLarge, MeshnodeError, RingBroken, WireError
from meshnode.types.generation import TokenEvent
from meshnode.types.ids import SessionId
from meshnode.types.rings import RingPlace
from meshnode.wire.failures import failure
from meshnode.wire.ring_messages import TOKEN_BYTES, Attach, Attached, Detach, Lap, RingDoor, RingMessage

__all__ = ["Rings"]

Deliver = Callable[[SessionId, Lap, bytes], None]

_TELL_EVERY = 1.0  # seconds between two words to the daemon that a session's rows pass
_MOST_LINKS = 64  # each way: a coordinator may name any doors
_MOST_DIALLED = 16  # doors at once


@attrs.define(eq=False)
class _Link:
    """A connection to another worker, one way; sessions by their number on it."""

    socket: RingSocket
    key: DoorKey | None  # None: the other side has dialled
    sessions: dict[int, SessionId] = attrs.field(factory=dict)
    last: int = -1  # number given
    is_heard: bool = False  # the other side has said something
    is_full: bool = False  # the poller says when there is room


@attrs.define(eq=False)
class _Member:
    """One session's place in its ring."""

    token: bytes  # that the worker before it will show
    door: RingDoor | None = None  # of the worker behind it
    exchange: int | None = None  # on which the daemon hears
    tells: bool = False  # it of each token
    before: tuple[_Link, int] | None = None
    behind: tuple[_Link, int] | None = None
    is_attached: bool = False  # the worker behind it knows the session
    is_entered: bool = False
    told_at: float = 0.0


@attrs.frozen(eq=False)
class _Waiting:
    """A session that waits for a link to be made."""

    session: SessionId
    member: _Member
    door: RingDoor


@attrs.define(eq=False)
class Rings:
    """All of one worker, for its main thread, which waits with `poller`."""

    emit: Callable[[Envelope], None]
    poller: "select.poll" = attrs.field(factory=select.poll)
    _members: dict[SessionId, _Member] = attrs.field(factory=dict, init=False)
    _expected: dict[bytes, SessionId] = attrs.field(factory=dict, init=False)  # token -> whose
    _dialling: dict[DoorKey, list[_Waiting]] = attrs.field(factory=dict, init=False)
    _links: list[_Link] = attrs.field(factory=list, init=False)
    _doors: RingDoors | None = attrs.field(default=None, init=False)  # made for the first ring

    # For those who hand on

    def expect(self, exchange: int, session: SessionId, place: RingPlace) -> None:
        """Answer with a door for the worker before this one; what the session had of an earlier ring ends."""
        self.leave(session)
        try:
            port = self._opened_doors().listen(place)
        except (RingBroken, OSError, RuntimeError) as error:  # no descriptor, no thread, or no room for the certificate
            self.emit(Envelope(exchange, failure(RingBroken(f"no door for other workers: {error}"))))
            return
        token = secrets.token_bytes(TOKEN_BYTES)
        self._members[session], self._expected[token] = _Member(token), session
        self.emit(Envelope(exchange, DoorOpened(port, token)))

    def enter(self, exchange: int, session: SessionId, door: RingDoor, *, tells: bool) -> None:
        """Hand the session's rows on through `door`, and say on `exchange` when all is there, or what went wrong."""
        member = self._members.get(session)
        if member is None or member.exchange is not None:
            self.emit(Envelope(exchange, failure(RingBroken("the session has no place in a ring here"))))
            return
        member.door, member.exchange, member.tells = door, exchange, tells
        if len(door.token) != TOKEN_BYTES:
            self.fail(
                session, RingBroken(f"the door's token has {len(door.token)} bytes, and none has but {TOKEN_BYTES}")
            )
            return
        self._go_by_link(_Waiting(session, member, door))

    def hand_on(self, session: SessionId, step: int, position: int, body: bytes) -> None:
        """Send a row to the next worker."""
        self._hand_on(session, step, position, None, body)

    def close(self, session: SessionId, step: int, position: int, event: TokenEvent) -> None:
        """Send a token to the first stage, whose row at `position` it is; one of the two tells its daemon."""
        tells = self.tells(session)
        self._hand_on(session, step, position, TokenEvent(event.token) if tells else event, b"")
        if tells:
            self.tell(session, Lapped(step - 1, position - 1, event))

    def tells(self, session: SessionId) -> bool:
        """Whether it is this worker whose daemon hears of the session's tokens."""
        member = self._members.get(session)
        return member is not None and member.tells

    def _hand_on(self, session: SessionId, step: int, position: int, event: TokenEvent | None, body: bytes) -> None:
        member = self._members.get(session)
        if member is None or member.behind is None:
            return  # the ring broke meanwhile, and the daemon has been told
        link, number = member.behind
        try:
            self._send(link, Lap(number, step, position, event), body)
        except FrameTooLarge as error:
            self.fail(session, RingBroken(f"a row of this model is too long for a ring: {error}"))
            return
        now = time.monotonic()
        if now - member.told_at > _TELL_EVERY:
            member.told_at = now
            self.tell(session, Turning())

    def tell(self, session: SessionId, message: Answer) -> None:
        """Tell the session's daemon, unless the session is in no ring any more."""
        member = self._members.get(session)
        if member is not None and member.exchange is not None:
            self.emit(Envelope(member.exchange, message))

    def fail(self, session: SessionId, error: MeshnodeError) -> None:
        """Tell the session's daemon why it goes on no longer, and take it out of its ring."""
        self.tell(session, failure(error))
        self.leave(session)

    def leave(self, session: SessionId) -> None:
        """Take a session out of its ring, if it is in one; nobody is told but the worker behind it."""
        member = self._members.pop(session, None)
        if member is None:
            return
        self._expected.pop(member.token, None)
        if member.before is not None:
            member.before[0].sessions.pop(member.before[1], None)
        if member.behind is not None:
            link, number = member.behind
            del link.sessions[number]
            self._send(link, Detach(number))

    # For the loop

    def take(self, stirred: frozenset[int], deliver: Deliver) -> None:
        """Take what has come over the connections that the poller found: laps go to `deliver`."""
        if self._doors is not None and self._doors.bell.fileno() in stirred:
            for made in self._doors.results():
                if isinstance(made, Dialled):
                    self._dialled(made)
                else:
                    self._arrived(made, deliver)
        for link in tuple(self._links):
            if link.socket.socket.fileno() not in stirred:
                continue
            try:
                for envelope in link.socket.receive():
                    self._hear(link, envelope.message, envelope.body, deliver)
                self._flush(link)
            except (RingBroken, WireError) as error:
                self._end(link, error)

    def close_unused(self) -> None:
        """End links that we have dialled and that carry no session."""
        for link in tuple(self._links):
            if link.key is not None and not link.sessions:
                self._end(link, RingBroken("unused"))

    def _opened_doors(self) -> RingDoors:
        if self._doors is None:
            self._doors = RingDoors(self._expected.__contains__)
            self.poller.register(self._doors.bell, select.POLLIN)
        return self._doors

    def _go_by_link(self, waiting: _Waiting) -> None:
        """Take the link that leads to a door, or have one made."""
        key = key_of(waiting.door)
        for link in self._links:
            if link.key == key:
                self._attach(link, waiting)
                return
        if key in self._dialling:
            self._dialling[key].append(waiting)
            return
        if len(self._dialling) >= _MOST_DIALLED:
            self.fail(waiting.session, RingBroken(f"{_MOST_DIALLED} doors are being tried already"))
            return
        try:
            self._opened_doors().dial(waiting.door, 0)
        except (OSError, RuntimeError) as error:  # no descriptor, or no thread
            self.fail(waiting.session, RingBroken(f"the next worker cannot be tried: {error}"))
        else:
            self._dialling[key] = [waiting]

    def _dialled(self, made: Dialled) -> None:
        """Go on with those who wait for this link; who dialled has shown the token of the first already."""
        queue = self._dialling.pop(made.key)
        if made.link is None:
            self._fail_all(queue, f"the next worker cannot be reached: {made.why}")
            return
        link = self._keep(made.link, made.key)
        if link is None:
            self._fail_all(queue, f"{_MOST_LINKS} links to other workers are in use already")
            return
        first, *others = queue
        link.last = 0
        if self._still_waits(first):
            link.sessions[0], first.member.behind = first.session, (link, 0)
        else:
            self._send(link, Detach(0))
        for each in others:
            self._attach(link, each)

    def _fail_all(self, queue: list[_Waiting], why: str) -> None:
        for each in filter(self._still_waits, queue):
            self.fail(each.session, RingBroken(why))

    def _attach(self, link: _Link, waiting: _Waiting) -> None:
        if not self._still_waits(waiting):
            return
        link.last = number = link.last + 1
        link.sessions[number], waiting.member.behind = waiting.session, (link, number)
        self._send(link, Attach(number, waiting.door.token))

    def _still_waits(self, waiting: _Waiting) -> bool:
        """Whether the session has not left this ring meanwhile."""
        return self._members.get(waiting.session) is waiting.member

    def _arrived(self, made: Arrived, deliver: Deliver) -> None:
        link = self._keep(made.link, None)
        if link is None:
            return
        try:
            for envelope in made.said:
                self._hear(link, envelope.message, envelope.body, deliver)
        except WireError as error:
            self._end(link, error)

    def _hear(self, link: _Link, message: RingMessage, body: bytes, deliver: Deliver) -> None:
        """Take one message. Raises WireError for what does not come this way."""
        link.is_heard = True
        if link.key is not None:
            if not isinstance(message, Attached):
                raise WireError(f"{type(message).__name__} from the worker that rows are handed to")
            if (session := link.sessions.get(message.number)) is not None:
                self._members[session].is_attached = True
                self._look_whether_entered(session)
        elif isinstance(message, Lap):
            if (session := link.sessions.get(message.number)) is not None:  # else it has left meanwhile
                deliver(session, message, body)
        elif isinstance(message, Attach):
            self._take_in(link, message)
        elif isinstance(message, Detach):
            if (session := link.sessions.pop(message.number, None)) is not None:
                self._members[session].before = None
        else:
            raise WireError("Attached from the worker that hands rows to us")

    def _take_in(self, link: _Link, message: Attach) -> None:
        if message.number in link.sessions:
            raise WireError("a session under a number that is in use")
        session = self._expected.pop(message.token, None)
        if session is None:
            return  # it has left meanwhile; and what one coordinator gets wrong is no reason to cut off the others
        link.sessions[message.number], self._members[session].before = session, (link, message.number)
        self._send(link, Attached(message.number))
        self._look_whether_entered(session)

    def _look_whether_entered(self, session: SessionId) -> None:
        member = self._members.get(session)
        if member is None or member.is_entered or member.before is None or not member.is_attached:
            return
        member.is_entered = True
        self.tell(session, RingEntered())

    # Links

    def _keep(self, socket: RingSocket, key: DoorKey | None) -> _Link | None:
        """Take a connection over, if need be in place of one that carries nothing; where all are in use, close it."""
        same_way = [link for link in self._links if (link.key is None) is (key is None)]
        if len(same_way) >= _MOST_LINKS:
            unused = next((link for link in same_way if not link.sessions), None)
            if unused is None:
                socket.close()
                return None
            self._end(unused, RingBroken("another needs the place"))
        link = _Link(socket, key)
        self._links.append(link)
        self.poller.register(socket.socket, select.POLLIN)
        return link

    def _send(self, link: _Link, message: RingMessage, body: bytes = b"") -> None:
        try:
            link.socket.send(message, body)
            self._flush(link)
        except RingBroken as error:
            self._end(link, error)

    def _flush(self, link: _Link) -> None:
        """Send what waits, and have the poller say when there is room for more. Raises RingBroken."""
        link.socket.flush()
        if link.is_full is not link.socket.has_unsent:
            link.is_full = link.socket.has_unsent
            self.poller.modify(link.socket.socket, select.POLLIN | (select.POLLOUT if link.is_full else 0))

    def _end(self, link: _Link, why: MeshnodeError) -> None:
        if link in self._links:
            self._links.remove(link)
            self.poller.unregister(link.socket.socket)
            link.socket.close()
        # Else it ended before, and has sessions all the same: those that were about to go by it.
        sessions, link.sessions = tuple(link.sessions.values()), {}
        for session in sessions:
            if (member := self._members.get(session)) is None:
                continue  # it went with another link
            is_first = member.behind is None or member.behind[0] is not link or member.behind[1] == 0
            member.before, member.behind = _unless(member.before, link), _unless(member.behind, link)
            if is_first or link.is_heard or member.door is None:
                self.fail(session, RingBroken(str(why)))
            else:  # a first token that is void, as when its session has ended, is no reason to cut off those behind it
                self._go_by_link(_Waiting(session, member, member.door))


def _unless(place: tuple[_Link, int] | None, link: _Link) -> tuple[_Link, int] | None:
    return None if place is not None and place[0] is link else place
