"""Token ids agree with llama.cpp's, bytes come back as they went in."""

import json
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.errors import InvalidModelFile, UnsupportedModel
from meshnode.text.detokenizer import Detokenizer
from meshnode.text.vocabulary import build_tokenizer
from meshnode.types.tokenizer import TokenizerData

GOLDENS = json.loads((Path(__file__).parents[1] / "golden" / "tokenizer_starter.json").read_text())

pytestmark = pytest.mark.starter


def test_there_are_enough_goldens():
    assert len(GOLDENS) >= 200


def test_ids_are_those_of_llama_cpp(tokenizer):
    for text, plain, special in GOLDENS:
        assert tokenizer.encode(text) == plain, repr(text)
        assert tokenizer.encode(text, parse_special=True) == special, repr(text)


def test_text_comes_back_through_the_detokenizer(tokenizer):
    @given(st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc"], max_codepoint=0x2FFFF)))
    def check(text):  # this vocabulary has no tokens for some control characters
        detokenizer = Detokenizer(tokenizer)
        assert "".join(map(detokenizer.push, tokenizer.encode(text))) + detokenizer.flush() == text

    check()


def test_a_character_is_held_until_it_is_whole(tokenizer):
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.push(token) for token in tokenizer.encode("🙂")]
    assert pieces[:-1] == [""] * (len(pieces) - 1)
    assert pieces[-1] == "🙂"


def test_half_a_character_is_replaced_at_the_end(tokenizer):
    detokenizer = Detokenizer(tokenizer)
    first = tokenizer.encode("🙂")[0]
    assert detokenizer.push(first) == ""
    assert detokenizer.flush() == "\ufffd"


def test_the_model_ends_where_its_family_ends(tokenizer):
    assert {tokenizer.data.tokens[token] for token in tokenizer.end_tokens} == {"<|im_end|>", "<|endoftext|>"}


def test_an_unknown_pre_tokenizer_is_refused_by_name(vocabulary):
    with pytest.raises(UnsupportedModel, match="klingon"):
        build_tokenizer(attrs.evolve(vocabulary, pre="klingon"))


def test_an_unknown_kind_is_refused_by_name(vocabulary):
    with pytest.raises(UnsupportedModel, match="rwkv"):
        build_tokenizer(attrs.evolve(vocabulary, model="rwkv"))


def test_merges_that_do_not_fit_are_refused(vocabulary):
    with pytest.raises(InvalidModelFile, match="merges"):
        build_tokenizer(attrs.evolve(vocabulary, merges=("zzz qqq",)))


def _spm(pieces):
    bytes_ = [(f"<0x{value:02X}>", -1000.0, 6) for value in range(256)]
    rows = [
        ("<unk>", 0.0, 2),
        ("<s>", 0.0, 3),
        ("</s>", 0.0, 3),
        *bytes_,
        *((text, score, 1) for text, score in pieces),
    ]
    return TokenizerData(
        model="llama",
        pre="default",
        tokens=tuple(text for text, _, _ in rows),
        token_types=tuple(kind for _, _, kind in rows),
        scores=tuple(score for _, score, _ in rows),
        bos_token=1,
        eos_token=2,
        unknown_token=0,
        add_bos=True,
    )


def test_spm_merges_by_score_and_falls_back_to_bytes():
    pieces = [("\u2581", -5.0), ("a", -4.0), ("b", -4.5), ("ab", -1.0), ("\u2581a", -2.0), ("\u2581ab", -3.0)]
    tokenizer = build_tokenizer(_spm(pieces))
    texts = [tokenizer.data.tokens[token] for token in tokenizer.encode("ab é")]
    assert texts == ["\u2581ab", "\u2581", "<0xC3>", "<0xA9>"]
    assert tokenizer.encode("ab", add_bos=True)[0] == 1
    detokenizer = Detokenizer(tokenizer)
    assert "".join(map(detokenizer.push, tokenizer.encode("ab é"))) == "ab é"


def test_spm_with_a_score_missing_is_refused():
    with pytest.raises(InvalidModelFile, match="score"):
        build_tokenizer(attrs.evolve(_spm([("a", 0.0)]), scores=()))
