"""Canonical bytes: what two nodes hash."""

import enum

import attrs
import msgspec
import pytest

from meshnode.errors import InvalidModelFile
from meshnode.files.canonical import canonical_bytes
from meshnode.files.tokenizer_shard import decode_tokenizer, encode_tokenizer
from meshnode.types.tokenizer import TokenizerData


class Colour(enum.Enum):
    RED = "red"


@attrs.frozen
class Old:
    zebra: int
    apple: Colour
    tail: tuple[float, ...] = ()


@attrs.frozen
class New:
    apple: Colour
    zebra: int
    added: str | None = None
    tail: tuple[float, ...] = ()


def test_the_form_is_what_the_documentation_says():
    raw = canonical_bytes(["x", 1, Old(5, Colour.RED, (0.5,))])
    assert raw == b"\x93\xa1x\x01\x83\xa5apple\xa3red\xa4tail\x91\xcb\x3f\xe0\0\0\0\0\0\0\xa5zebra\x05"


def test_a_field_added_later_with_a_default_changes_nothing():
    assert canonical_bytes(Old(5, Colour.RED)) == canonical_bytes(New(Colour.RED, 5))
    assert canonical_bytes(New(Colour.RED, 5, added="x")) != canonical_bytes(Old(5, Colour.RED))


VOCABULARY = TokenizerData(
    "llama", "default", ("<unk>", "a", "\u2581b"), (2, 1, 1), scores=(0.0, -1.0, -2.5), bos_token=1
)


def test_a_tokenizer_comes_back_as_it_was():
    assert decode_tokenizer(encode_tokenizer(VOCABULARY)) == VOCABULARY


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "cannot be read"),
        (b"\xc1", "cannot be read"),
        (msgspec.msgpack.encode({"model": "gpt2"}), "missing required field"),
        (encode_tokenizer(attrs.evolve(VOCABULARY, tokens=())), "empty"),
        (encode_tokenizer(attrs.evolve(VOCABULARY, token_types=(1,))), "3 tokens, but 1 token types"),
        (encode_tokenizer(attrs.evolve(VOCABULARY, token_types=())), "unknown type"),
        (encode_tokenizer(attrs.evolve(VOCABULARY, token_types=(1, 1, 9))), "unknown type"),
        (encode_tokenizer(attrs.evolve(VOCABULARY, scores=(1.0,))), "3 tokens, but 1 scores"),
        (encode_tokenizer(attrs.evolve(VOCABULARY, eos_token=3)), "eos token is 3"),
        (encode_tokenizer(attrs.evolve(VOCABULARY, padding_token=-1)), "padding token is -1"),
    ],
)
def test_a_tokenizer_that_contradicts_itself_is_refused(raw, words):
    with pytest.raises(InvalidModelFile, match=words):
        decode_tokenizer(raw)
