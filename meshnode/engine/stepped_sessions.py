"""Sessions that a coordinator drives step by step through this stage, or through a part of it.

Decode steps that wait together run in one forward if they are for the same part; a chunk of a prompt runs alone, in turn with
them. A session's rows and its sampled tokens follow its position: a step below it takes back what came after.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import attrs
import torch

from meshnode.engine.executor import StageReservation, StageSpec
from meshnode.engine.pace import Counters, Pace
from meshnode.engine.sampling import sample
from meshnode.engine.stage_model import Part, Rows
from meshnode.engine.worker_messages import Answer, Envelope, Release, Released, Reserve, Reserved, Step, StepDone
from meshnode.errors import MeshnodeError, RequestError, SessionLost
from meshnode.types.generation import TokenEvent
from meshnode.types.ids import SessionId
from meshnode.wire.failures import failure

__all__ = ["Cache", "Stage", "SteppedSessions", "check_vocabulary"]


class Cache(Protocol):
    """What a batch needs of a session's cache."""

    length: int

    @property
    def capacity(self) -> int:
        """Positions reserved."""
        ...

    def truncate(self, length: int) -> None:
        """Forget positions from `length` on."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...


class Stage(Protocol):
    """What a batch needs of a stage model."""

    @property
    def spec(self) -> StageSpec:
        """The stage."""
        ...

    def open_cache(self, tokens: int) -> Cache:
        """Reserve a cache."""
        ...

    def forward(self, rows: Sequence[Rows], part: Part | None = None) -> list[torch.Tensor]:
        """Run one step."""
        ...


@attrs.define(eq=False)
class _NoCache:
    """The cache of a part without blocks: it only counts."""

    capacity: int
    length: int = 0

    def truncate(self, length: int) -> None:
        self.length = length

    def close(self) -> None:
        pass


@attrs.define(eq=False)
class _Session:
    reservation: StageReservation
    part: Part
    cache: Cache
    history: list[int]  # the answer so far, where the head is

    def return_to(self, position: int) -> None:
        """Forget everything from `position` on."""
        if position > self.cache.length:
            raise RequestError(f"position {position} leaves a gap after the {self.cache.length} that are there")
        self.cache.truncate(position)


@attrs.frozen(eq=False)
class _Waiting:
    exchange: int
    step: Step
    session: _Session
    inputs: torch.Tensor


@attrs.define(eq=False)
class SteppedSessions:
    """All of them, by id, and the steps that wait."""

    stage: Stage
    emit: Callable[[Envelope], None]
    counters: Counters
    pace: Pace
    _sessions: dict[SessionId, _Session] = attrs.field(factory=dict, init=False)
    _steps: deque[_Waiting] = attrs.field(factory=deque, init=False)
    _long_next: bool = attrs.field(default=False, init=False)

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def is_waiting(self) -> bool:
        """Whether there are steps to run."""
        return bool(self._steps)

    def accept(self, exchange: int, message: Reserve | Step | Release, body: bytes) -> None:
        """Take a question; a refusal is emitted at once and changes nothing."""
        try:
            if isinstance(message, Reserve):
                self._answer(exchange, Reserved(self._reserve(message.session, message.reservation)))
            elif isinstance(message, Step):
                self._steps.append(self._checked(exchange, message, body))
            else:
                self._drop(message.session)
                self._answer(exchange, Released())
        except MeshnodeError as error:
            self._answer(exchange, failure(error))

    def run(self) -> None:
        """Run the decode steps that can go together, or one long step."""
        batch = [each for each in self._take() if self._returned(each)]
        if not batch:
            return
        try:
            rows = [Rows(each.session.cache, each.inputs, _logits(each)) for each in batch]  # type: ignore[arg-type]  # a Cache will do
            part = batch[0].session.part
            count = sum(len(each.inputs) for each in batch)
            with self.pace.measured(rows_in_all=count, blocks=len(part.blocks)):
                results = self.stage.forward(rows, part)
        except MeshnodeError as error:
            for each in batch:
                self._answer(each.exchange, failure(error))
            return
        for each, result in zip(batch, results, strict=True):
            self._finish(each, result)

    def _take(self) -> list[_Waiting]:
        """Take the next steps from the queue, of each session its first. Short ones go first, but not every time."""
        firsts = list({id(each.session): each for each in reversed(self._steps)}.values())[::-1]
        short = [each for each in firsts if len(each.inputs) == 1]
        long = [each for each in firsts if len(each.inputs) > 1]
        if long and (self._long_next or not short):
            self._long_next = False
            chosen = long[:1]
        else:
            self._long_next = True
            together = [each for each in short if each.session.part == short[0].session.part]
            chosen = together[: self.stage.spec.max_batch]
        for each in chosen:
            self._steps.remove(each)
        return chosen

    def _returned(self, each: _Waiting) -> bool:
        """Take a session back to where its step begins; say whether that could be done."""
        try:
            each.session.return_to(each.step.position)
        except RequestError as error:
            self._answer(each.exchange, failure(error))
            return False
        return True

    def _finish(self, each: _Waiting, result: torch.Tensor) -> None:
        session, step, count = each.session, each.step, len(each.inputs)
        if not session.part.blocks:
            session.cache.length += count
        if count > 1:
            self.counters.prefill_tokens += count
        else:
            self.counters.decode_tokens += 1
        if session.part.head:
            self._answer(each.exchange, StepDone(step.position, self._sample(each, result) if step.sample else None))
            return
        skipped = min(count, max(0, step.return_from - step.position))
        raw = result[skipped:].contiguous().view(torch.uint8).numpy().tobytes()
        self.emit(Envelope(each.exchange, StepDone(step.position + skipped), raw))

    def _sample(self, each: _Waiting, logits: torch.Tensor) -> TokenEvent:
        session, wants = each.session, each.session.reservation
        assert wants.sampling is not None
        del session.history[max(0, session.cache.length - wants.prompt_length) :]
        event = sample(logits[-1], wants.sampling, position=session.cache.length, history=session.history)
        session.history.append(event.token)
        return event

    def _reserve(self, session: SessionId, reservation: StageReservation) -> int:
        part = self._part(reservation)
        there = self._sessions.get(session)
        if there is not None and there.part == part and there.cache.capacity >= reservation.tokens:
            there.reservation, there.history = reservation, list(reservation.history)
            return there.cache.length
        self._drop(session)
        cache = self.stage.open_cache(reservation.tokens) if part.blocks else _NoCache(reservation.tokens)
        self._sessions[session] = _Session(reservation, part, cache, list(reservation.history))
        return 0

    def _part(self, wants: StageReservation) -> Part:
        """Find what is wanted in what is loaded."""
        spec, blocks = self.stage.spec, wants.blocks
        inside = blocks is None or (spec.blocks.start <= blocks.start and blocks.end <= spec.blocks.end)
        if not inside or (wants.embedding and not spec.embedding) or (wants.head and not spec.head):
            raise RequestError(f"blocks {blocks} are wanted, with their ends; this stage holds {spec.blocks}")
        if not 1 <= wants.tokens <= spec.context_length:
            raise RequestError(f"{wants.tokens} positions are wanted; this stage allows 1 to {spec.context_length}")
        if wants.head and wants.sampling is None:
            raise RequestError("the head needs to know how to sample")
        first = spec.blocks.start
        indices = range(0) if blocks is None else range(blocks.start - first, blocks.end - first)
        return Part(indices, wants.embedding, wants.head)

    def _checked(self, exchange: int, step: Step, body: bytes) -> _Waiting:
        session = self._sessions.get(step.session)
        if session is None:
            raise SessionLost("this stage holds nothing of that session")
        inputs = self._inputs(session.part, step, body)
        if step.position < 0 or step.position + len(inputs) > session.cache.capacity:
            raise RequestError(f"positions {step.position} and on do not fit the {session.cache.capacity} reserved")
        return _Waiting(exchange, step, session, inputs)

    def _inputs(self, part: Part, step: Step, body: bytes) -> torch.Tensor:
        if part.embedding:
            if not step.tokens:
                raise RequestError("this stage begins with tokens, and the step has none")
            check_vocabulary(self.stage.spec, step.tokens)
            return torch.tensor(step.tokens)
        width = self.stage.spec.config.hidden_size
        if not body or len(body) % (2 * width):
            raise RequestError(f"{len(body)} bytes are not rows of {width} bfloat16 activations")
        rows = torch.frombuffer(bytearray(body), dtype=torch.bfloat16).view(-1, width)
        if not bool(rows.isfinite().all()):
            raise RequestError("the activations are not finite")
        return rows

    def _drop(self, session: SessionId) -> None:
        there = self._sessions.pop(session, None)
        if there is not None:
            there.cache.close()
            for each in [each for each in self._steps if each.session is there]:
                self._steps.remove(each)
                self._answer(each.exchange, failure(SessionLost("the session was released")))

    def _answer(self, exchange: int, message: Answer) -> None:
        self.emit(Envelope(exchange, message))


def check_vocabulary(spec: StageSpec, tokens: Sequence[int]) -> None:
    """Raise RequestError for a token id that the model does not have."""
    top = spec.config.vocabulary_size
    if not all(0 <= token < top for token in tokens):
        raise RequestError(f"there are token ids outside 0 to {top - 1}")


def _logits(each: _Waiting) -> str:
    return "last" if each.step.sample else "none"
