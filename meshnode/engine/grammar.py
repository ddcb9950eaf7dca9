"""Masks of the tokens that a grammar allows next, by llguidance.

A mask is a function of the grammar, the vocabulary and the answer so far, so it is the same on every node, after a replay too.
End tokens are in it exactly when the grammar may stop, and alone in it when it must.
"""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import attrs
import llguidance.numpy
import msgspec
import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from meshnode.engine.executor import StageSpec
from meshnode.errors import EngineError, GrammarRefused
from meshnode.types.token_bytes import end_tokens, token_bytes
from meshnode.types.tokenizer import TokenizerData

__all__ = ["GrammarState", "GrammarVocabulary", "Grammars", "check_grammar"]

_LONGEST = 1 << 20  # characters: one of this size that llguidance takes is compiled in about 0.1 s
_KEPT = 16  # compiled grammars; a client with tools sends the same one again and again
_LONGEST_REASON = 300  # characters
_LIMITS = LLParserLimits(
    max_lexer_states=25_000,  # 1 to 2 kB each; the default would let one grammar take half a gigabyte
    verbose_errors=False,
)
_UNKNOWN, _CONTROL, _UNUSED = 2, 3, 5

Mask = npt.NDArray[np.bool_]


@attrs.define(eq=False)
class _Words:
    """A vocabulary as llguidance asks for it."""

    eos_token_id: int
    bos_token_id: int | None
    tokens: Sequence[bytes]
    special_token_ids: Sequence[int]
    trie: LLTokenizer | None = None

    def __call__(self, text: bytes) -> list[int]:
        """Cut forced text into tokens, longest first: the text is all that counts, and the engine knows no merges."""
        return [] if self.trie is None else self.trie.greedy_tokenize(text.decode())


@attrs.frozen(eq=False)
class GrammarVocabulary:
    """The tokens of one model, as masks need them. Making one takes 0.1 s and 12 MB for 50,000 tokens."""

    size: int  # of a mask: the model's logits, which may be more than the tokens
    tokenizer: LLTokenizer

    @classmethod
    def of(cls, data: TokenizerData, size: int) -> Self:
        """Make it. Raises GrammarRefused for a vocabulary without an end token: no answer could be complete."""
        ends = sorted(end_tokens(data))
        if not ends:
            raise GrammarRefused("this model's vocabulary has no end token, so no grammar could end an answer")
        kinds = (_UNKNOWN, _CONTROL, _UNUSED)
        special = [token for token, kind in enumerate(data.token_types) if kind in kinds or token in ends]
        pieces = list(token_bytes(data)[:size])
        for token in special:
            pieces[token] = data.tokens[token].encode()  # their names, by which a grammar may ask for them
        pieces += [b""] * (size - len(pieces))
        words = _Words(ends[0], data.bos_token, pieces, special)
        words.trie = LLTokenizer(TokenizerWrapper(words), eos_token=ends, slices=[])
        return cls(size, LLTokenizer(TokenizerWrapper(words), eos_token=ends))

    def compile(self, grammar: str) -> LLMatcher:
        """Return a matcher at the beginning. Raises GrammarRefused saying what llguidance does not take."""
        if len(grammar) > _LONGEST:
            raise GrammarRefused(f"the grammar has {len(grammar)} characters; {_LONGEST} are allowed")
        matcher = LLMatcher(self.tokenizer, grammar, log_level=0, limits=_LIMITS)
        if matcher.is_error():
            raise GrammarRefused(f"the grammar cannot be enforced: {_reason(matcher)}")
        return matcher


def check_grammar(grammar: str, vocabulary: GrammarVocabulary) -> None:
    """Raise GrammarRefused for a grammar that cannot be enforced with this vocabulary."""
    vocabulary.compile(grammar)


@attrs.define(eq=False)
class GrammarState:
    """A grammar and how much of an answer it has seen."""

    vocabulary: GrammarVocabulary
    matcher: LLMatcher
    seen: int = attrs.field(default=0, init=False)  # tokens
    _bits: npt.NDArray[np.int32] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._bits = llguidance.numpy.allocate_token_bitmask(1, self.vocabulary.size)

    def allowed(self) -> Mask:
        """Return which tokens may come next, bool [vocabulary]; at least one.

        Raises GrammarRefused when following the grammar has become too much work.
        """
        llguidance.numpy.fill_next_token_bitmask(self.matcher, self._bits)
        self._check()
        return np.unpackbits(self._bits.view(np.uint8)[0], count=self.vocabulary.size, bitorder="little").view(np.bool_)

    def advance(self, token: int) -> None:
        """Take the next token of the answer. Raises GrammarRefused for one that is not allowed."""
        self.matcher.consume_token(token)
        self._check()
        self.seen += 1

    def truncate(self, length: int) -> None:
        """Forget the tokens from `length` on."""
        if length < self.seen:
            self.matcher.rollback(self.seen - length)
            self._check()
            self.seen = length

    def _check(self) -> None:
        if self.matcher.is_error():
            raise GrammarRefused(f"the answer cannot follow its grammar any further: {_reason(self.matcher)}")


@attrs.define(eq=False)
class Grammars:
    """Those that the sessions of one stage use. The vocabulary is read when the first one comes."""

    spec: StageSpec
    _vocabulary: GrammarVocabulary | None = attrs.field(default=None, init=False)
    _compiled: OrderedDict[str, LLMatcher] = attrs.field(factory=OrderedDict, init=False)

    def begin(self, grammar: str | None, history: Sequence[int]) -> GrammarState | None:
        """Return the state after the answer so far, None without a grammar.

        Raises GrammarRefused when the grammar is refused, or the answer so far does not follow it.
        """
        if grammar is None:
            return None
        state = GrammarState(self._words(), self._matcher(grammar))
        for token in history:
            state.advance(token)
        return state

    def _words(self) -> GrammarVocabulary:
        if self._vocabulary is None:
            # Not through `files`, which the engine does not know. Whoever loads the model has checked the shard's parts.
            try:
                data = msgspec.msgpack.decode(Path(self.spec.tokenizer).read_bytes(), type=TokenizerData)
            except (OSError, msgspec.MsgspecError) as error:
                raise EngineError(f"the tokenizer, which a grammar needs, cannot be read: {error}") from error
            self._vocabulary = GrammarVocabulary.of(data, self.spec.config.vocabulary_size)
        return self._vocabulary

    def _matcher(self, grammar: str) -> LLMatcher:
        compiled = self._compiled.pop(grammar, None) or self._words().compile(grammar)
        self._compiled[grammar] = compiled
        if len(self._compiled) > _KEPT:
            self._compiled.popitem(last=False)
        return compiled.deep_copy()


def _reason(matcher: LLMatcher) -> str:
    """Return what llguidance says, in one line."""
    lines = [line.strip() for line in matcher.get_error().splitlines() if line.strip()]
    named = next(
        (line.removeprefix("error:") for line in lines if line.startswith("error:")), ""
    )  # a regular expression's
    return " ".join([*lines[:1], named.strip()]).strip()[:_LONGEST_REASON] or "llguidance does not say why"
