"""Sessions that a coordinator drives step by step through this stage, or through a part of it.

Decode steps that wait together run in one forward if they are for the same part; rows of a prompt go alone, in turn with them
and in pieces when others are there. A session's rows and its sampled tokens follow its position: a step below it takes back
what came after.
"""

from collections import deque
from collections.abc import Callable

import attrs
import torch

from meshnode.engine.admission import part_for, rows_of
from meshnode.engine.batch_ports import Cache, Stage
from meshnode.engine.executor import StageReservation
from meshnode.engine.grammar import Grammars, GrammarState
from meshnode.engine.no_cache import NoCache
from meshnode.engine.pace import Counters
from meshnode.engine.prefixes import PAGE, names_in
from meshnode.engine.readings import Reading, begin_reading
from meshnode.engine.rings import Rings
from meshnode.engine.sampling import sample
from meshnode.engine.stage_model import Part, Rows, Wanted
from meshnode.engine.worker_messages import (
    Answer,
    BatchLimits,
    EnterRing,
    Envelope,
    Lapped,
    LetTurn,
    OpenDoor,
    Release,
    Released,
    Reserve,
    Reserved,
    Step,
    StepDone,
)
from meshnode.errors import BadRows, MeshnodeError, RequestError, SessionLost
from meshnode.types.generation import TokenEvent
from meshnode.types.ids import SessionId
from meshnode.wire.failures import failure
from meshnode.wire.ring_messages import Lap

__all__ = ["SteppedQuestion", "SteppedSessions"]

SteppedQuestion = Reserve | Step | OpenDoor | EnterRing | LetTurn | Release

_LAST_STEP = (1 << 63) - 1  # a message has no room for a number much higher


@attrs.define(eq=False)
class _Waiting:
    """A step whose rows from `done` on are to be computed."""

    exchange: int | None  # None: it came round the ring
    step: Step
    inputs: torch.Tensor
    done: int = 0
    found: list[torch.Tensor] = attrs.field(factory=list)  # activations to return, of the rows that are done

    @property
    def is_decode(self) -> bool:
        return len(self.inputs) == 1

    @property
    def end(self) -> int:
        """The position after its last row."""
        return self.step.position + len(self.inputs)


@attrs.define(eq=False)
class _Session:
    id: SessionId
    reservation: StageReservation
    part: Part
    cache: Cache
    history: list[int]  # the answer so far, where the head is
    grammar: GrammarState | None  # that has seen `history`
    pages: tuple[bytes, ...]  # names of the first ones
    reading: Reading | None  # of the prompt, where the head is, until it is done
    steps: deque[_Waiting] = attrs.field(factory=deque)
    number: int = 0  # of the last step that was taken
    until: int = 0  # where the embedding is: the ring turns up to the row before this position
    held: tuple[Lap, bytes] | None = None  # what came round to there

    def begin(self, waiting: _Waiting) -> None:
        """Go back to where a step begins. Raises RequestError, and changes nothing, when it begins or samples too far on."""
        step = waiting.step
        if step.position > self.cache.length:
            raise RequestError(f"position {step.position} leaves a gap after the {self.cache.length} that are there")
        if step.sample and waiting.end > self.reservation.prompt_length + len(self.history):
            raise RequestError(f"the head does not know the answer up to position {waiting.end}")
        self.cache.truncate(step.position)

    def sample(self, logits: torch.Tensor) -> TokenEvent:
        """Choose the token after the last row, and say what was read. Raises GrammarRefused."""
        reading, self.reading = self.reading, None
        return self._choose(logits) if reading is None else reading.told(lambda: self._choose(logits))

    def _choose(self, logits: torch.Tensor) -> TokenEvent:
        wants, position = self.reservation, self.cache.length
        assert wants.sampling is not None
        kept = max(0, position - wants.prompt_length)
        del self.history[kept:]
        allowed = None
        if self.grammar is not None:
            self.grammar.truncate(kept)
            allowed = self.grammar.allowed()
        event = sample(logits, wants.sampling, position=position, history=self.history, allowed=allowed)
        if self.grammar is not None:
            self.grammar.advance(event.token)
        self.history.append(event.token)
        return event


@attrs.define(eq=False)
class SteppedSessions:
    """All of them, by id; those that wait also in the order of their turns."""

    stage: Stage
    limits: BatchLimits
    emit: Callable[[Envelope], None]
    counters: Counters
    grammars: Grammars
    rings: Rings
    _sessions: dict[SessionId, _Session] = attrs.field(factory=dict, init=False)
    _turns: dict[SessionId, _Session] = attrs.field(factory=dict, init=False)
    _long_next: bool = attrs.field(default=False, init=False)

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def is_waiting(self) -> bool:
        """Whether there are steps to run."""
        return bool(self._turns)

    def accept(self, exchange: int, message: SteppedQuestion, body: bytes) -> None:
        """Take a question; a refusal is emitted at once and changes nothing."""
        try:
            match message:
                case Reserve():
                    self._answer(exchange, Reserved(self._reserve(message.session, message.reservation)))
                case Step():
                    self._queue(exchange, message, body)
                case OpenDoor():
                    self._named(message.session)
                    self.rings.expect(exchange, message.session, message.place)
                case EnterRing():
                    self.rings.enter(exchange, message.session, message.door, tells=message.tells)
                case LetTurn():
                    self._let_turn(message)
                case Release():
                    self._drop(message.session)
                    self._answer(exchange, Released())
        except MeshnodeError as error:
            self._answer(exchange, failure(error))

    def lap(self, name: SessionId, lap: Lap, body: bytes) -> None:
        """Take a row that came round, from the stage before; one that should not be takes the session out of its ring."""
        session = self._sessions[name]
        try:
            _check(lap, session)
        except MeshnodeError as error:
            self.rings.fail(name, error)
            return
        if lap.event is not None and self.rings.tells(name):
            self.rings.tell(name, Lapped(lap.step - 1, lap.position - 1, lap.event))
        if session.part.embedding and lap.position >= session.until and session.held is None:
            session.held = lap, body
            return
        self._go_round(session, lap, body)

    def _go_round(self, session: _Session, lap: Lap, body: bytes) -> None:
        try:
            if session.steps or session.held is not None or lap.position != session.cache.length:
                raise BadRows(f"position {lap.position} came round where {session.cache.length} is the next")
            tokens = () if lap.event is None else (lap.event.token,)
            head = session.part.head
            self._queue(None, Step(session.id, lap.position, tokens, sample=head, number=lap.step, until=1), body)
        except MeshnodeError as error:
            self.rings.fail(session.id, error)

    def _let_turn(self, message: LetTurn) -> None:
        session = self._sessions.get(message.session)
        if session is None:
            return  # it has been released meanwhile
        session.until = max(session.until, message.until)
        held, session.held = session.held, None
        if held is not None:
            self._go_round(session, *held)

    def run(self, *, alone: bool) -> None:
        """Run the decode steps that can go together, or rows of one long step: many if `alone` and no other session is there."""
        chunk = self.limits.prefill_alone if alone and len(self._sessions) == 1 else self.limits.prefill_mixed
        batch = [session for session in self._take() if self._begun(session)]
        if not batch:
            return
        pieces = [self._piece(session, chunk) for session in batch]
        try:
            results = self.stage.forward(pieces, batch[0].part)
        except MeshnodeError as error:
            for session in batch:
                self._refuse(session, error)
        else:
            for session, piece, result in zip(batch, pieces, results, strict=True):
                self._advance(session, len(piece.inputs), result)
        for session in batch:
            self._pass_turn(session)

    def _take(self) -> list[_Session]:
        """Choose whose next steps run: one long one, or short ones through the same part. They alternate."""
        short = [session for session in self._turns.values() if session.steps[0].is_decode]
        long = [session for session in self._turns.values() if not session.steps[0].is_decode]
        if long and (self._long_next or not short):
            self._long_next = False
            return long[:1]
        self._long_next = True
        together = [session for session in short if session.part == short[0].part]
        return together[: self.stage.spec.max_batch]

    def _begun(self, session: _Session) -> bool:
        """Take a session back to where its step begins, unless it has begun; say whether that could be done."""
        waiting = session.steps[0]
        try:
            if not waiting.done:
                session.begin(waiting)
        except RequestError as error:
            self._refuse(session, error)
            self._pass_turn(session)
            return False
        return True

    def _piece(self, session: _Session, chunk: int) -> Rows:
        waiting = session.steps[0]
        if not self.stage.spec.config.causal:
            chunk = len(waiting.inputs)
        elif session.reading is not None:
            chunk = min(chunk, session.reading.most_rows)
        inputs = waiting.inputs[waiting.done : waiting.done + chunk]
        is_last = waiting.done + len(inputs) == len(waiting.inputs)
        wanted: Wanted = "last" if waiting.step.sample and is_last else "none"
        if session.reading is not None:
            wanted = session.reading.wants
        return Rows(session.cache, inputs, wanted)  # type: ignore[arg-type]  # a Cache will do

    def _advance(self, session: _Session, count: int, result: torch.Tensor) -> None:
        """Note that `count` rows of a session's step are done, and answer when these were the last."""
        waiting = session.steps[0]
        if not session.part.blocks:
            session.cache.length += count
        elif session.cache.length % PAGE < count:
            session.cache.keep(session.pages)
        if waiting.is_decode:
            self.counters.decode_tokens += 1
        else:
            self.counters.prefill_tokens += count
        step = waiting.step
        if session.reading is not None:
            try:
                session.reading.add(session.cache.length - count, result)
            except RequestError as error:
                self._refuse(session, error)
                return
        if not session.part.head:
            wanted = result[max(0, step.return_from - step.position - waiting.done) :]
            waiting.found.append(wanted)
        waiting.done += count
        if waiting.done < len(waiting.inputs):
            return
        try:
            token = session.sample(result[-1]) if session.part.head and step.sample else None
        except MeshnodeError as error:
            self._refuse(session, error)
            return
        session.steps.popleft()
        if step.until:
            self._hand_on(session, waiting, token)
        if waiting.exchange is not None:
            first = min(waiting.end, max(step.position, step.return_from))
            rows = b"" if session.part.head or step.until else _raw(waiting.found)
            self.emit(Envelope(waiting.exchange, StepDone(first, token, goes_round=bool(step.until)), rows))

    def _hand_on(self, session: _Session, waiting: _Waiting, token: TokenEvent | None) -> None:
        """Send the row to the next worker; after the last stage, the token to the first."""
        step = waiting.step
        if token is None:
            self.rings.hand_on(session.id, step.number, step.position, _raw(waiting.found))
        else:
            self.rings.close(session.id, step.number + 1, step.position + 1, token)

    def _refuse(self, session: _Session, error: MeshnodeError) -> None:
        """End the session's next step with an error: for whoever asked, or for the daemon if it came round the ring."""
        waiting = session.steps.popleft()
        if waiting.exchange is None:
            self.rings.fail(session.id, error)
        else:
            self._answer(waiting.exchange, failure(error))

    def _pass_turn(self, session: _Session) -> None:
        """Let the others go first."""
        del self._turns[session.id]
        if session.steps:
            self._turns[session.id] = session

    def _named(self, name: SessionId) -> _Session:
        session = self._sessions.get(name)
        if session is None:
            raise SessionLost("this stage holds nothing of that session")
        return session

    def _queue(self, exchange: int | None, step: Step, body: bytes) -> None:
        session = self._named(step.session)
        inputs = rows_of(self.stage.spec, session.part, step, body)
        if step.sample and not session.part.head:
            raise RequestError("this part of the stage has no head to sample with")
        waiting = _Waiting(exchange, step, inputs)
        room = min(session.cache.capacity, self.stage.spec.context_length)  # what is reserved is whole pages
        if step.number > _LAST_STEP:
            raise RequestError(f"step {step.number} is beyond {_LAST_STEP}, and has none after it")
        if step.position < 0 or waiting.end > room:
            raise RequestError(f"positions {step.position} to {waiting.end} do not fit the {room} reserved")
        if exchange is not None:
            session.until, session.held = step.until, None
        session.number = step.number
        session.steps.append(waiting)
        self._turns.setdefault(session.id, session)

    def _reserve(self, name: SessionId, reservation: StageReservation) -> int:
        self.rings.leave(name)
        part = part_for(self.stage.spec, reservation)
        grammar = self._grammar(reservation)
        pages = names_in(f"{part} for {reservation.asker}".encode(), reservation.pages)
        there = self._sessions.get(name)
        reading = None
        if part.head and reservation.sampling is not None:
            reading = begin_reading(reservation.sampling, reservation.history)
        is_enough = there is not None and there.part == part and there.cache.capacity >= reservation.tokens
        if there is not None and is_enough and reading is None:  # a reading has to see every row
            self._refuse_waiting(there, "the session was reserved anew")
            there.reservation, there.history, there.grammar = reservation, list(reservation.history), grammar
            there.pages, there.number, there.until, there.held = pages, 0, 0, None
            return there.cache.length
        self._drop(name)
        cache = self.stage.open_cache(reservation.tokens) if part.blocks else NoCache(reservation.tokens)
        history = list(reservation.history)
        self._sessions[name] = _Session(name, reservation, part, cache, history, grammar, pages, reading)
        return cache.share(pages) if reading is None else 0

    def _grammar(self, reservation: StageReservation) -> GrammarState | None:
        """Return the grammar of a session whose head is here, after the answer so far. Raises GrammarRefused."""
        if not reservation.head or reservation.sampling is None:
            return None
        return self.grammars.begin(reservation.sampling.grammar, reservation.history)

    def _drop(self, name: SessionId) -> None:
        there = self._sessions.pop(name, None)
        self.rings.leave(name)
        if there is not None:
            there.cache.close()
            self._refuse_waiting(there, "the session was released")

    def _refuse_waiting(self, session: _Session, reason: str) -> None:
        self._turns.pop(session.id, None)
        while session.steps:
            self._refuse(session, SessionLost(reason))

    def _answer(self, exchange: int, message: Answer) -> None:
        self.emit(Envelope(exchange, message))


def _raw(pieces: list[torch.Tensor]) -> bytes:
    """Return rows as they travel: bfloat16, little-endian."""
    return b"".join([piece.cpu().contiguous().view(torch.uint8).numpy().tobytes() for piece in pieces])


def _check(lap: Lap, session: _Session) -> None:
    """Look at what is told of before it is computed with. Raises BadRows."""
    if lap.position < 0:
        raise BadRows(f"position {lap.position} came round, and there can be none")
    if lap.step != session.number + 1:  # passed on, it would be those after us that tell of a wrong one
        raise BadRows(f"step {lap.step} came round where {session.number + 1} is the next")
    if session.part.embedding is not (lap.event is not None):
        raise BadRows(
            "a row came round where a token is due" if lap.event is None else "a token came round where a row is due"
        )
