"""Unigram ids are SentencePiece's own, and nothing that a user writes is a control token."""

import io
from pathlib import Path

import attrs
import pytest
import sentencepiece

from meshnode.errors import InvalidModelFile
from meshnode.files.gguf_metadata import tokenizer_data
from meshnode.files.typed_fields import TypedFields
from meshnode.text.charsmap import read_charsmap
from meshnode.text.vocabulary import build_tokenizer
from meshnode.types.tokenizer import TokenizerData

LINES = (Path(__file__).parents[1] / "data" / "alice.txt").read_text().splitlines()[:300]
NASTY = [
    "", "   ", " two  spaces ", "a\tb\nc", "\ufb01ne \uff46\uff55\uff4c\uff4c \uff11\uff12", "h\u00e9llo e\u0301", "\u65e5\u672c\u8a9e x \U0001f642\U0001f642",
    "\u00bd \u338f \ufdfa", "zz qq xx", "<unk>", "<0x41>", "</s>", "a </s> hi", "<s>",
]  # fmt: skip


def _fields(raw: bytes, wanted: int):
    """Return the bytes of a field of a Protocol Buffers message: the model's own reader needs another protobuf than ours."""
    at = 0

    def number():
        nonlocal at
        value = shift = 0
        while True:
            byte = raw[at]
            at, value, shift = at + 1, value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value

    while at < len(raw):
        key = number()
        size = {0: 0, 1: 8, 5: 4}.get(key & 7)
        if key & 7 == 0:
            number()
        elif size is None:
            size = number()
        at += size
        if key == wanted << 3 | 2:
            return raw[at - size : at]
    return b""


def _trained(**options):
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_writer=written, vocab_size=500, model_type="unigram", minloglevel=2,
        num_threads=1, **options,
    )  # fmt: skip
    theirs = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    tokens = range(theirs.get_piece_size())
    kinds = {"is_unknown": 2, "is_control": 3, "is_unused": 5, "is_byte": 6}
    data = TokenizerData(
        model="t5",
        pre="default",
        tokens=tuple(map(theirs.id_to_piece, tokens)),
        token_types=tuple(
            next((kind for name, kind in kinds.items() if getattr(theirs, name)(token)), 1) for token in tokens
        ),
        scores=tuple(map(theirs.get_score, tokens)),
        eos_token=theirs.eos_id(),
        unknown_token=theirs.unk_id(),
        remove_extra_whitespaces=options.get("remove_extra_whitespaces", True),
        charsmap=_fields(_fields(written.getvalue(), 3), 2),
    )
    return theirs, data


@pytest.fixture(scope="module")
def trained():
    return _trained()


def test_ids_are_those_of_sentencepiece(trained):
    theirs, data = trained
    assert data.charsmap
    ours = build_tokenizer(data)
    for text in NASTY + LINES:
        assert ours.encode(text) == theirs.encode(text), text


def test_bytes_and_spaces_are_kept_where_the_vocabulary_keeps_them():
    theirs, data = _trained(byte_fallback=True, remove_extra_whitespaces=False, normalization_rule_name="identity")
    ours = build_tokenizer(data)
    assert not data.charsmap
    assert ours.encode("\U0001f642")[-4:] == [data.tokens.index(f"<0x{byte:02X}>") for byte in "\U0001f642".encode()]
    for text in NASTY + LINES:
        assert ours.encode(text) == theirs.encode(text), text


def test_a_control_token_comes_out_of_text_only_when_asked(trained):
    ours = build_tokenizer(trained[1])
    end = trained[1].eos_token
    assert end not in ours.encode("a </s> hi")
    assert end in ours.encode("a </s> hi", parse_special=True)


def test_a_table_of_characters_that_points_outside_itself_is_refused(trained):
    good = trained[1].charsmap
    size = 4 + int.from_bytes(good[:4], "little")
    assert read_charsmap(good)("\uff46\ufb01") == "ffi"
    for bad in (
        b"",
        good[:3],
        good[: size - 1],
        good[:size],
        b"\0\4\0\0" + b"\xff\xfe\xff\x7f" * 256 + b"x\0",
        bytes(4) + good,
    ):
        with pytest.raises(InvalidModelFile, match="precompiled_charsmap"):
            read_charsmap(bad)


@pytest.mark.parametrize("signed", [False, True])
def test_a_file_says_what_is_done_to_a_text_first(trained, signed):
    table = trained[1].charsmap
    values = {
        "model": "t5",
        "tokens": ["<unk>"],
        "remove_extra_whitespaces": True,
        "precompiled_charsmap": [value - 256 if signed and value > 127 else value for value in table],
    }
    fields = TypedFields({f"tokenizer.ggml.{key}": value for key, value in values.items()}, "the header")
    data = tokenizer_data(fields)
    assert (data.charsmap, data.remove_extra_whitespaces) == (table, True)
    fields.values["tokenizer.ggml.precompiled_charsmap"][7] = 256
    with pytest.raises(InvalidModelFile, match="not a byte"):
        tokenizer_data(fields)


def test_a_vocabulary_with_a_score_missing_is_refused(trained):
    with pytest.raises(InvalidModelFile, match="unigram"):
        build_tokenizer(attrs.evolve(trained[1], scores=()))
