"""The tokenizer of a model, built from its vocabulary.

Delimiters (`<|im_start|>` and their like) come out of text only where the caller says so; user text never becomes one.
"""

import re
from collections.abc import Callable, Sequence

import attrs
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from meshnode.errors import InvalidModelFile, UnsupportedModel
from meshnode.text.delimiters import delimiters
from meshnode.text.pretokenizers import pre_tokenizer
from meshnode.text.spm import SpmEncoder
from meshnode.text.unigram import UnigramEncoder
from meshnode.text.wordpiece import wordpiece
from meshnode.types.token_bytes import end_tokens, token_bytes
from meshnode.types.tokenizer import TokenizerData

__all__ = ["Tokenizer", "build_tokenizer"]

_USER_DEFINED, _BYTE = 4, 6
_SPACE = "\u2581"
_NO_LIMIT = 1 << 40  # bytes: WordPiece and unigram drop spaces, and a word that they do not know is one token


@attrs.frozen(eq=False)
class Tokenizer:
    """Encodes text and gives tokens their bytes."""

    data: TokenizerData
    end_tokens: frozenset[int]
    delimiters: frozenset[int]
    longest: int  # bytes of the longest token: a text of n bytes has at least n / longest tokens
    _encode_plain: Callable[[str], list[int]]
    _normalize: Callable[[str], str]
    _control: re.Pattern[str] | None  # delimiters and user-defined tokens, longest first
    _user_defined: re.Pattern[str] | None  # those that are no delimiters
    _ids: dict[str, int]
    _bytes: tuple[bytes, ...]

    @property
    def bos_token(self) -> int | None:
        """The token that begins a text, if the vocabulary has one."""
        return self.data.bos_token

    @property
    def eos_token(self) -> int | None:
        """The token that ends a text, if the vocabulary has one."""
        return self.data.eos_token

    @property
    def ending(self) -> list[int]:
        """What the vocabulary puts after a text that is whole, often nothing."""
        return [self.eos_token] if self.data.add_eos and self.eos_token is not None else []

    @property
    def size(self) -> int:
        """Number of tokens."""
        return len(self.data.tokens)

    @property
    def control_texts(self) -> tuple[str, ...]:
        """The texts of all delimiters."""
        return tuple(text for token in sorted(self.delimiters) if (text := self.data.tokens[token]))

    def encode(self, text: str, *, parse_special: bool = False, add_bos: bool = False) -> list[int]:
        """Encode text; control tokens in it are recognised only with `parse_special`."""
        result = [self.bos_token] if add_bos and self.data.add_bos and self.bos_token is not None else []
        return result + self.encode_fragment(text, parse_special=parse_special, after_special=True)

    def encode_fragment(self, text: str, *, parse_special: bool, after_special: bool) -> list[int]:
        """Encode a part of a text; `after_special` says that a control token, or nothing, stands before it."""
        pattern = self._control if parse_special else self._user_defined
        if pattern is None:
            return self._encode_text(text, after_special)
        result: list[int] = []
        at = 0
        for match in pattern.finditer(text):
            if match.start() > at:
                result += self._encode_text(text[at : match.start()], after_special)
            result.append(self._ids[match.group()])
            at, after_special = match.end(), True
        if at < len(text):
            result += self._encode_text(text[at:], after_special)
        return result

    def split_control(self, text: str) -> list[tuple[str, int | None]]:
        """Cut text into (plain text, None) and (control text, token id) pieces."""
        if self._control is None:
            return [(text, None)]
        pieces: list[tuple[str, int | None]] = []
        at = 0
        for match in self._control.finditer(text):
            pieces += [(text[at : match.start()], None), (match.group(), self._ids[match.group()])]
            at = match.end()
        return [*pieces, (text[at:], None)]

    def token_bytes(self, token: int) -> bytes:
        """Return what a token adds to a text: nothing for control tokens."""
        return self._bytes[token]

    def text(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens; what is not UTF-8 is replaced."""
        return b"".join(self._bytes[token] for token in tokens).decode(errors="replace")

    def token_text(self, token: int) -> str:
        """Return a token's text for people: control tokens by name, broken UTF-8 replaced."""
        return self._bytes[token].decode(errors="replace") or self.data.tokens[token]

    def _encode_text(self, text: str, after_special: bool) -> list[int]:
        if self.data.model in ("gpt2", "bert"):
            return self._encode_plain(text)
        text = self._normalize(text)
        prefix = " " if self.data.add_space_prefix and after_special and text else ""
        return self._encode_plain((prefix + text).replace(" ", _SPACE))


def build_tokenizer(data: TokenizerData) -> Tokenizer:
    """Build the tokenizer. Raises UnsupportedModel naming the kind or pre-tokenizer that is unknown."""
    ids: dict[str, int] = {}
    for token, text in enumerate(data.tokens):
        ids.setdefault(text, token)
    guarded = delimiters(data)
    plain = {text: token for text, token in ids.items() if token not in guarded}
    normalize: Callable[[str], str] = str
    if data.model == "gpt2":
        encode = _byte_level(data, plain)
    elif data.model == "llama":
        encode = _spm(data, plain)
    elif data.model == "t5":
        unigram = _unigram(data, plain)
        encode, normalize = unigram.encode, unigram.normalize
    elif data.model == "bert":
        encode = wordpiece(data, ids)
    else:
        raise UnsupportedModel(
            f"tokenizers of kind {data.model!r} cannot be run; known: gpt2 (byte-level BPE), llama (SPM), t5 (unigram), "
            "bert (WordPiece)"
        )
    texts = list(enumerate(zip(data.tokens, data.token_types, strict=True)))
    pieces = token_bytes(data)
    return Tokenizer(
        data=data,
        end_tokens=end_tokens(data),
        delimiters=guarded,
        longest=_NO_LIMIT if data.model in ("bert", "t5") else max(map(len, pieces), default=1) or 1,
        encode_plain=encode,
        normalize=normalize,
        control=_pattern([text for token, (text, kind) in texts if token in guarded or kind == _USER_DEFINED]),
        user_defined=_pattern(
            [text for token, (text, kind) in texts if token not in guarded and kind == _USER_DEFINED]
        ),
        ids=ids,
        bytes=pieces,
    )


def _pattern(texts: list[str]) -> re.Pattern[str] | None:
    ordered = sorted({text for text in texts if text}, key=lambda text: (-len(text), text))
    return re.compile("|".join(map(re.escape, ordered))) if ordered else None


def _byte_level(data: TokenizerData, plain: dict[str, int]) -> Callable[[str], list[int]]:
    rules, known = pre_tokenizer(data.pre), frozenset(data.tokens)
    merges = [(left, right) for left, _, right in (merge.partition(" ") for merge in data.merges)]
    if any(not left or not right or left + right not in known for left, right in merges):
        raise InvalidModelFile("the vocabulary's merges do not fit its tokens")
    merges = [(left, right) for left, right in merges if left in plain and right in plain and left + right in plain]
    core = tokenizers.Tokenizer(models.BPE(vocab=plain, merges=merges, ignore_merges=rules.whole_words))
    cuts = [pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated") for pattern in rules.patterns]
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    core.decoder = decoders.ByteLevel()
    return lambda text: core.encode(text, add_special_tokens=False).ids


def _spm(data: TokenizerData, plain: dict[str, int]) -> Callable[[str], list[int]]:
    pieces, values = _scored(data, plain, "an SPM")
    return SpmEncoder(pieces, data.scores, values, data.unknown_token or 0).encode


def _unigram(data: TokenizerData, plain: dict[str, int]) -> UnigramEncoder:
    return UnigramEncoder.build(data, *_scored(data, plain, "a unigram"))


def _scored(data: TokenizerData, plain: dict[str, int], what: str) -> tuple[dict[str, int], dict[int, int]]:
    """Return the pieces that a text may be cut into, and the tokens of the bytes that none of them covers."""
    if len(data.scores) != len(data.tokens):
        raise InvalidModelFile(f"{what} vocabulary needs a score for every token")
    values = {
        int(text[3:5], 16): token
        for token, (text, kind) in enumerate(zip(data.tokens, data.token_types, strict=True))
        if kind == _BYTE
    }
    return {text: token for text, token in plain.items() if data.token_types[token] != _BYTE}, values
