"""The continuous batch: every step decodes one token of each running session and advances waiting prompts by a bounded piece.

It is a plain object that a thread drives: questions go in, `step` computes, answers come out through `emit`. New arrivals and
cancellations are looked at between steps, and a lone stream never waits for a batch to fill.
"""

from collections.abc import Callable

import attrs
import torch

from meshnode.engine.admission import check_sampling, check_tokens
from meshnode.engine.batch_ports import Cache, Stage
from meshnode.engine.executor import Generation
from meshnode.engine.grammar import Grammars, GrammarState
from meshnode.engine.pace import Counters
from meshnode.engine.prefixes import PAGE, PageNames
from meshnode.engine.readings import Reading, begin_reading
from meshnode.engine.rings import Rings
from meshnode.engine.sampling import sample
from meshnode.engine.stage_model import Rows, Wanted
from meshnode.engine.stepped_sessions import SteppedQuestion, SteppedSessions
from meshnode.engine.worker_messages import (
    Accepted,
    Answer,
    BatchLimits,
    Cancel,
    Envelope,
    Generate,
    Grant,
    Progress,
    Sampled,
)
from meshnode.errors import MeshnodeError, RequestError
from meshnode.types.generation import TokenEvent
from meshnode.wire.failures import failure

__all__ = ["Batch"]


@attrs.define(eq=False)
class _Running:
    """One generation in the batch."""

    exchange: int
    generation: Generation
    cache: Cache
    window: int  # tokens that may still be sent
    tokens: list[int]  # prompt and answer so far
    grammar: GrammarState | None
    names: PageNames
    reading: Reading | None  # of the prompt, until it is done
    sampled: int = 0
    cached: int = 0  # tokens of the prompt that needed no computing

    @property
    def unread(self) -> int:
        """Tokens that are not in the cache yet: 1 while decoding."""
        return len(self.tokens) - self.cache.length

    def share(self) -> None:
        """Begin with what others have computed, all but the last token; a reading has to see all of it."""
        if self.reading is not None:
            return
        shared = self.cache.share(self.names.of(self.tokens, (len(self.tokens) - 1) // PAGE))
        self.cached = min(self.cached + shared, self.generation.prompt_length)

    def keep(self, rows: int) -> None:
        """Let others share the pages that the last `rows` rows have filled."""
        if self.cache.length % PAGE < rows:
            self.cache.keep(self.names.of(self.tokens, self.cache.length // PAGE))


@attrs.define(eq=False)
class Batch:
    """All sessions of one stage."""

    stage: Stage
    limits: BatchLimits
    emit: Callable[[Envelope], None]
    rings: Rings = attrs.field(default=attrs.Factory(lambda self: Rings(self.emit), takes_self=True))
    counters: Counters = attrs.field(factory=Counters, init=False)
    _running: dict[int, _Running] = attrs.field(factory=dict, init=False)  # by exchange, in order of arrival
    _grammars: Grammars = attrs.field(init=False)
    _stepped: SteppedSessions = attrs.field(init=False)
    _steps_next: bool = attrs.field(default=True, init=False)  # whose turn it is when both kinds of work wait
    _turn: int = attrs.field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self._grammars = Grammars(self.stage.spec)
        self._stepped = SteppedSessions(self.stage, self.limits, self.emit, self.counters, self._grammars, self.rings)

    @property
    def is_idle(self) -> bool:
        """Whether a step would do nothing."""
        return not self._stepped.is_waiting and not self._is_generating

    @property
    def _is_generating(self) -> bool:
        return any(running.window > 0 for running in self._running.values())

    @property
    def sessions(self) -> int:
        """Sessions that hold memory."""
        return len(self._running) + len(self._stepped)

    def accept(self, envelope: Envelope) -> None:
        """Take a question; a refusal is emitted at once and keeps nothing."""
        message, exchange = envelope.message, envelope.exchange
        if isinstance(message, Generate):
            self._start(exchange, message)
        elif isinstance(message, Grant) and exchange in self._running:
            self._running[exchange].window += message.tokens
        elif isinstance(message, Cancel) and exchange in self._running:
            self._running.pop(exchange).cache.close()
        elif isinstance(message, SteppedQuestion):
            self._stepped.accept(exchange, message, envelope.body)

    def take_laps(self, stirred: frozenset[int]) -> None:
        """Take what workers of other stages have handed to this one, over the connections that have stirred."""
        self.rings.take(stirred, self._stepped.lap)

    def step(self) -> None:
        """Compute once: steps of sessions that others drive, or one round of the generations; both wait their turn."""
        steps = self._stepped.is_waiting and (self._steps_next or not self._is_generating)
        self._steps_next = not steps
        if steps:
            self._stepped.run(alone=not self._running)
            return
        ready = [running for running in self._running.values() if running.window > 0]
        decoding = self._take_turns([running for running in ready if running.unread == 1])
        alone = not decoding and not self._stepped
        chunk = self.limits.prefill_alone if alone else self.limits.prefill_mixed
        if not self.stage.spec.config.causal:
            chunk = self.stage.spec.context_length  # a text goes in one piece
        prompts = _prompts([running for running in ready if running.unread > 1][: self.stage.spec.max_batch], chunk)
        self.counters.decode_tokens += len(decoding)
        self.counters.prefill_tokens += sum(count for _, count in prompts)
        if batch := [*((running, 1) for running in decoding), *prompts]:
            self._run_batch(batch)

    def _take_turns(self, decoding: list[_Running]) -> list[_Running]:
        """Return at most max_batch sessions, others next time."""
        limit = self.stage.spec.max_batch
        if len(decoding) <= limit:
            return decoding
        self._turn = (self._turn + limit) % len(decoding)
        return (decoding + decoding)[self._turn : self._turn + limit]

    def _start(self, exchange: int, message: Generate) -> None:
        generation = message.generation
        try:
            if not self.stage.spec.is_whole_model:
                raise RequestError("this stage holds a part of the model and cannot generate on its own")
            if not 1 <= generation.prompt_length <= len(generation.tokens) or generation.max_tokens < 1:
                raise RequestError("a generation needs a prompt and at least one token to sample")
            check_tokens(self.stage.spec, generation.tokens)
            check_sampling(self.stage.spec, generation.sampling)
            needed = min(self.stage.spec.context_length, len(generation.tokens) + generation.max_tokens)
            if len(generation.tokens) > needed:
                raise RequestError(f"{len(generation.tokens)} tokens do not fit a context of {needed}")
            answer = generation.tokens[generation.prompt_length :]
            grammar = self._grammars.begin(generation.sampling.grammar, answer)
            cache = self.stage.open_cache(needed)
        except MeshnodeError as error:
            self._answer(exchange, failure(error))
            return
        self._running[exchange] = _Running(
            exchange,
            generation,
            cache,
            message.window,
            list(generation.tokens),
            grammar,
            PageNames(generation.asker.encode()),
            begin_reading(generation.sampling, answer),
        )
        self._answer(exchange, Accepted())

    def _run_batch(self, batch: list[tuple[_Running, int]]) -> None:
        """Advance each by so many tokens."""
        rows = []
        for running, count in batch:
            start = running.cache.length
            inputs = torch.tensor(running.tokens[start : start + count])
            wanted: Wanted = "last" if count == running.unread else "none"
            if running.reading is not None:
                wanted = running.reading.wants
            rows.append(Rows(running.cache, inputs, wanted))  # type: ignore[arg-type]  # a Cache will do
        try:
            results = self.stage.forward(rows)
        except MeshnodeError as error:
            for running, _ in batch:
                self._fail(running, error)
            return
        sampled, ended, cached = [], [], []
        for (running, count), logits in zip(batch, results, strict=True):
            running.keep(count)
            try:
                event = self._read(running, count, logits)
            except MeshnodeError as error:
                self._fail(running, error)
                continue
            if event is None:
                continue
            sampled.append(Sampled(running.exchange, event.token, event.logprob, event.top, event.prompt, event.vector))
            if running.sampled == 1 and running.cached:
                cached.append((running.exchange, running.cached))
            if self._is_over(running, event.token):
                ended.append(running.exchange)
                self._running.pop(running.exchange).cache.close()
        if sampled:
            self._answer(0, Progress(tuple(sampled), tuple(ended), tuple(cached)))

    def _fail(self, running: _Running, error: MeshnodeError) -> None:
        self._running.pop(running.exchange).cache.close()
        self._answer(running.exchange, failure(error))

    def _read(self, running: _Running, count: int, outputs: torch.Tensor) -> TokenEvent | None:
        """Take what the head gave for the last `count` rows; return what comes of it."""
        if running.reading is None:
            return self._sample(running, outputs[-1]) if len(outputs) else None
        running.reading.add(running.cache.length - count, outputs)
        if running.unread:
            return None
        reading, running.reading = running.reading, None
        return reading.told(lambda: self._sample(running, outputs[-1]))

    def _sample(self, running: _Running, logits: torch.Tensor) -> TokenEvent:
        generation = running.generation
        history = running.tokens[generation.prompt_length :]
        grammar, position = running.grammar, len(running.tokens)
        allowed = grammar.allowed() if grammar is not None else None
        event = sample(logits, generation.sampling, position=position, history=history, allowed=allowed)
        if grammar is not None:
            grammar.advance(event.token)
        running.tokens.append(event.token)
        running.sampled += 1
        running.window -= 1
        return event

    def _is_over(self, running: _Running, token: int) -> bool:
        generation = running.generation
        full = len(running.tokens) >= self.stage.spec.context_length
        return (
            bool(generation.sampling.pooling)
            or token in generation.end_tokens
            or running.sampled >= generation.max_tokens
            or full
        )

    def _answer(self, exchange: int, message: Answer) -> None:
        self.emit(Envelope(exchange, message))


def _prompts(waiting: list[_Running], rows: int) -> list[tuple[_Running, int]]:
    """Choose prompts to advance by `rows` tokens in all: the first as far as that goes, then others that fit whole.

    Others in part would compute what they could share with the first, once that is done.
    """
    chosen: list[tuple[_Running, int]] = []
    for running in waiting:
        running.share()
        most = rows if running.reading is None else min(rows, running.reading.most_rows)
        count = min(running.unread, most)
        if chosen and count < running.unread:
            break
        chosen.append((running, count))
        rows -= count
    return chosen
