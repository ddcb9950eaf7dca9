"""The one finaliser: tokens become text, stop sequences, log-probabilities, finish reason and usage, for every surface."""

from collections.abc import Sequence

import attrs

from meshnode.text.detokenizer import Detokenizer
from meshnode.text.stop_sequences import StopMatcher
from meshnode.text.vocabulary import Tokenizer
from meshnode.types.generation import Delta, Finished, FinishReason, TokenEvent, TokenLogprob, Usage

__all__ = ["Answer"]


@attrs.define(eq=False)
class Answer:
    """One answer in the making. Feed it tokens until `is_done`; then, or when no more come, ask for the `ending`."""

    tokenizer: Tokenizer
    prompt_tokens: int
    stops: Sequence[str]
    wants_logprobs: bool
    tokens: int = attrs.field(default=0, init=False)  # of the answer; an end token is not part of it
    _reason: FinishReason | None = attrs.field(default=None, init=False)
    _stop: str | None = attrs.field(default=None, init=False)
    _detokenizer: Detokenizer = attrs.field(init=False)
    _matcher: StopMatcher = attrs.field(init=False)
    _unsent: list[int] = attrs.field(factory=list, init=False)  # tokens whose text has not been returned
    _logprobs: list[TokenLogprob] = attrs.field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        self._detokenizer = Detokenizer(self.tokenizer)
        self._matcher = StopMatcher(self.stops)

    @property
    def is_done(self) -> bool:
        """Whether an end token or a stop sequence has come."""
        return self._reason is not None

    def push(self, event: TokenEvent) -> Delta | None:
        """Take a token; return the text that is certain now, if there is any."""
        if event.token in self.tokenizer.end_tokens:
            self._reason = FinishReason.STOP
            return None
        self.tokens += 1
        self._unsent.append(event.token)
        if self.wants_logprobs:
            self._logprobs.append(self._logprob(event))
        text, self._stop = self._matcher.push(self._detokenizer.push(event.token))
        if self._stop is not None:
            self._reason = FinishReason.STOP
        return self._delta(text)

    def resume(self, tokens: Sequence[int]) -> None:
        """Take tokens whose text has been delivered elsewhere; only what comes after them is returned from now on."""
        for token in tokens:
            self.tokens += 1
            _, self._stop = self._matcher.push(self._detokenizer.push(token))
            if self._stop is not None:
                self._reason = FinishReason.STOP
                return

    def ending(self) -> tuple[Delta | None, Finished]:
        """Return what was held back, and how it ended: without an end token or stop sequence, by length."""
        rest: Delta | None = None
        if self._stop is None:
            text, self._stop = self._matcher.push(self._detokenizer.flush())
            rest = self._delta(text + self._matcher.flush(), last=True)
        reason = self._reason or (FinishReason.STOP if self._stop is not None else FinishReason.LENGTH)
        return rest, Finished(reason, Usage(self.prompt_tokens, self.tokens), self._stop)

    def _delta(self, text: str, *, last: bool = False) -> Delta | None:
        if not text and not (last and self._logprobs):
            return None
        logprobs, self._logprobs = tuple(self._logprobs), []
        tokens, self._unsent = tuple(self._unsent), []
        return Delta(text, logprobs, tokens)

    def _logprob(self, event: TokenEvent) -> TokenLogprob:
        top = tuple(self._entry(token, logprob) for token, logprob in event.top)
        assert event.logprob is not None
        return attrs.evolve(self._entry(event.token, event.logprob), top=top)

    def _entry(self, token: int, logprob: float) -> TokenLogprob:
        return TokenLogprob(self.tokenizer.token_text(token), logprob, self.tokenizer.token_bytes(token))
