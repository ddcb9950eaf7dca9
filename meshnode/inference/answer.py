"""The one finaliser: tokens become reasoning, text, tool calls, log-probabilities, finish reason and usage, for every surface.

What it returns is a function of the tokens alone, not of when they came. So a coordinator that takes an answer over pushes the
tokens whose outcome has been delivered, forgets what comes out, and goes on.
"""

import hashlib
from collections.abc import Mapping, Sequence

import attrs

from meshnode.text.detokenizer import Detokenizer
from meshnode.text.reasoning import ReasoningSplitter
from meshnode.text.stop_sequences import StopMatcher
from meshnode.text.tool_calls import CallText, ToolScanner
from meshnode.text.vocabulary import Tokenizer
from meshnode.types.generation import CallPiece, Delta, Finished, FinishReason, TokenEvent, TokenLogprob, Usage
from meshnode.types.ids import RequestId

__all__ = ["Answer", "AnswerForm"]


@attrs.frozen(eq=False)
class AnswerForm:
    """What is looked for in an answer, beside text."""

    request: RequestId  # calls get their ids from it
    stops: Sequence[str] = ()
    wants_logprobs: bool = False
    reasoning: ReasoningSplitter | None = None  # a fresh one, for a model that thinks
    tools: ToolScanner | None = None  # a fresh one, where tools may be called
    spelled: Mapping[int, bytes] = attrs.field(factory=dict)  # control tokens that those two read


@attrs.define(eq=False)
class Answer:
    """One answer in the making. Feed it tokens until `is_done`; then, or when no more come, ask for the `ending`."""

    tokenizer: Tokenizer
    prompt_tokens: int
    form: AnswerForm
    tokens: int = attrs.field(default=0, init=False)  # of the answer; an end token is not part of it
    reasoning_tokens: int = attrs.field(default=0, init=False)
    _reason: FinishReason | None = attrs.field(default=None, init=False)
    _stop: str | None = attrs.field(default=None, init=False)
    _detokenizer: Detokenizer = attrs.field(init=False)
    _matcher: StopMatcher = attrs.field(init=False)
    _calls: int = attrs.field(default=0, init=False)
    _has_loose_end: bool = attrs.field(default=False, init=False)  # such as a call that was cut off
    _unsent: list[int] = attrs.field(factory=list, init=False)  # tokens whose outcome has not been returned
    _logprobs: list[TokenLogprob] = attrs.field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        self._detokenizer = Detokenizer(self.tokenizer, self.form.spelled)
        self._matcher = StopMatcher(self.form.stops)

    @property
    def is_done(self) -> bool:
        """Whether an end token or a stop sequence has come."""
        return self._reason is not None

    def push(self, event: TokenEvent) -> Delta | None:
        """Take a token; return what is certain now, if there is anything."""
        if event.vector:
            self._reason = FinishReason.STOP
            return Delta(vector=event.vector, tokens=(event.token,))
        if event.token in self.tokenizer.end_tokens:
            self._reason = FinishReason.STOP
            return None
        self._unsent.append(event.token)
        if self.form.wants_logprobs:
            self._logprobs.append(self._logprob(event))
        return self._delta(self._read(event.token))

    def echo(self, prompt: Sequence[int], scores: Sequence[TokenEvent] | None) -> Delta:
        """Return the prompt's text, with its log-probabilities if `scores` are those of all tokens but the first."""
        known = () if scores is None else (self._entry(prompt[0], None), *map(self._logprob, scores))
        return Delta(self.tokenizer.text(prompt), known)

    def resume(self, tokens: Sequence[int]) -> None:
        """Take tokens whose outcome has been delivered elsewhere; only what comes after them is returned from now on."""
        for token in tokens:
            self._read(token)
            if self.is_done:
                return

    def ending(self) -> tuple[Delta | None, Finished]:
        """Return what was held back, and how it ended: without an end token or stop sequence, by length."""
        rest: Delta | None = None
        if self._stop is None:
            rest = self._delta(self._flush(), last=True)
        reason = self._reason or FinishReason.LENGTH
        is_cut = self._reason is None and self._has_loose_end
        if self._calls and self._stop is None and not is_cut:
            reason = FinishReason.TOOL_CALLS
        usage = Usage(self.prompt_tokens, self.tokens, reasoning_tokens=self.reasoning_tokens)
        return rest, Finished(reason, usage, self._stop)

    # From text to what it means

    def _read(self, token: int) -> Delta:
        self.tokens += 1
        return self._split(self._detokenizer.push(token))

    def _split(self, text: str) -> Delta:
        splitter = self.form.reasoning
        if splitter is None:
            return self._scan(text)
        split = splitter.push(text)
        self.reasoning_tokens += splitter.is_inside
        return attrs.evolve(self._scan(split.text), reasoning=split.reasoning)

    def _scan(self, text: str) -> Delta:
        if self.form.tools is None:
            return Delta(self._match(text))
        found = self.form.tools.push(text)
        return Delta(self._match(found.text), calls=self._pieces(found.calls))

    def _flush(self) -> Delta:
        """Return what was held back at every stage; a stop sequence may still be in it."""
        parsed = self._split(self._detokenizer.flush())
        splitter, scanner = self.form.reasoning, self.form.tools
        reasoning, text, calls = parsed.reasoning, parsed.text, parsed.calls
        if splitter is not None and self._stop is None:
            split = splitter.flush()
            more = self._scan(split.text)
            reasoning, text, calls = reasoning + split.reasoning, text + more.text, calls + more.calls
        if scanner is not None and self._stop is None:
            found = scanner.flush()
            self._has_loose_end = bool(found.text.strip())
            text, calls = text + self._match(found.text), calls + self._pieces(found.calls)
        if self._stop is None:
            text += self._matcher.flush()
        return Delta(text, reasoning=reasoning, calls=calls)

    def _match(self, text: str) -> str:
        """Cut text at a stop sequence."""
        if self._stop is not None:
            return ""
        shown, self._stop = self._matcher.push(text)
        if self._stop is not None:
            self._reason = FinishReason.STOP
        return shown

    def _pieces(self, calls: Sequence[CallText]) -> tuple[CallPiece, ...]:
        pieces = []
        for call in calls:
            digest = hashlib.blake2b(f"{self.form.request}:{self._calls}".encode(), digest_size=12).hexdigest()
            pieces.append(CallPiece(self._calls, f"call_{digest}", call.name, call.arguments))
            self._calls += 1
        return tuple(pieces)

    # What is returned

    def _delta(self, found: Delta, *, last: bool = False) -> Delta | None:
        if not (found.text or found.reasoning or found.calls or (last and self._logprobs)):
            return None
        logprobs, self._logprobs = tuple(self._logprobs), []
        tokens, self._unsent = tuple(self._unsent), []
        return attrs.evolve(found, logprobs=logprobs, tokens=tokens)

    def _logprob(self, event: TokenEvent) -> TokenLogprob:
        top = tuple(self._entry(token, logprob) for token, logprob in event.top)
        assert event.logprob is not None
        return attrs.evolve(self._entry(event.token, event.logprob), top=top)

    def _entry(self, token: int, logprob: float | None) -> TokenLogprob:
        return TokenLogprob(self.tokenizer.token_text(token), logprob, self.tokenizer.token_bytes(token))
