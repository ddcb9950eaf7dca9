"""Tokenizers of checkpoints: the ids the `tokenizers` library gives, or a refusal that names what cannot be expressed."""

import functools
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from meshnode.errors import InvalidModelFile, UnsupportedModel
from meshnode.files.checkpoint_tokenizer import CheckpointTexts, checkpoint_tokenizer
from meshnode.files.typed_fields import TypedFields
from meshnode.text.vocabulary import build_tokenizer

CORPUS = [
    "The quick brown fox jumps over the lazy dog, doesn't it? It'll cost 1234567 dollars.",
    "def f(x):\n    return x * 2  # twice\n\n\nprint(f(21))",
    "Grüße aus Köln, 你好世界, привет мир, مرحبا, 🙂🙃",
    "   leading and   inner    spaces\t\ttabs  ",
] * 5
TEXTS = [
    *CORPUS[:4], "", " ", "  ", "a", "Hello world", "hello  world 12345", "\n\n \n", "We're HERE'S 99.5% done",
    "unseen: žluťoučký kůň ∑∞≠ \u200b \x00 \x7f", "<s> is not special here", "tab\tsep\r\nlines\r\n",
]  # fmt: skip
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3, QWEN2 = _WORDS + r"\p{N}{1,3}" + _REST, _WORDS + r"\p{N}" + _REST
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _split(pattern: str) -> pre_tokenizers.PreTokenizer:
    cut = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    return pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


PRE_TOKENIZERS = {
    "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "llama-bpe": lambda: _split(LLAMA3),
    "qwen2": lambda: _split(QWEN2),
    "tekken": lambda: _split(TEKKEN),
}


def byte_level(pre: str) -> tokenizers.Tokenizer:
    """Train a byte-level tokenizer with this pre-tokenizer and two special tokens."""
    core = tokenizers.Tokenizer(models.BPE(ignore_merges=pre in ("llama-bpe", "tekken")))
    core.pre_tokenizer, core.decoder = PRE_TOKENIZERS[pre](), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=["<s>", "<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    core.train_from_iterator(CORPUS, trainer)
    return core


LINES = [line for line in Path(__file__).read_text().splitlines() if line and not re.search("<s>|</s>|<unk>", line)]


@functools.cache
def _sentencepiece() -> str:
    core = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=1200, special_tokens=["<unk>", "<s>", "</s>", *bytes_], show_progress=False
    )
    core.train_from_iterator([*CORPUS, *LINES], trainer)
    described = json.loads(core.to_str())
    described["added_tokens"] = described["added_tokens"][:3]
    return json.dumps(described)


def sentencepiece() -> dict[str, Any]:
    """Train a tokenizer of Llama 2's kind and return its JSON."""
    return json.loads(_sentencepiece())


def _read(described: dict[str, Any], size: int = 512, **texts: Any):
    def fields(name: str) -> TypedFields:
        return TypedFields(texts.get(name, {}), name + ".json")

    return checkpoint_tokenizer(
        CheckpointTexts(
            fields("config"), TypedFields(described, "tokenizer.json"), fields("tokenizer_config"),
            fields("generation_config"), texts.get("chat_template"),
        ),
        size,
    )  # fmt: skip


@pytest.mark.parametrize("pre", sorted(PRE_TOKENIZERS))
def test_byte_level_ids_are_those_of_the_library(pre):
    core = byte_level(pre)
    data = _read(json.loads(core.to_str()))
    assert (data.model, data.pre) == ("gpt2", pre)
    ours = build_tokenizer(data)
    for text in TEXTS:
        if "<s>" not in text:  # the library takes special tokens out of any text
            assert ours.encode(text) == core.encode(text, add_special_tokens=False).ids, text


def test_sentencepiece_ids_are_those_of_the_library():
    described = sentencepiece()
    core = tokenizers.Tokenizer.from_str(json.dumps(described))
    data = _read(described, size=1200)
    assert (data.model, data.merges, data.add_space_prefix) == ("llama", (), True)
    assert (data.token_types[0], data.token_types[1], data.token_types[3 + 65]) == (2, 3, 6)
    ours, order = build_tokenizer(data), random.Random(1)
    shuffled = ["".join(order.sample(line, len(line))) for line in LINES]
    for text in [*TEXTS, *LINES, *shuffled]:
        if text and "<s>" not in text:
            assert ours.encode(text) == core.encode(text, add_special_tokens=False).ids, text


@pytest.mark.parametrize(("scheme", "prefix"), [("always", True), ("first", True), ("never", False)])
def test_the_newer_spelling_of_sentencepiece_is_read_too(scheme, prefix):
    described = sentencepiece() | {
        "normalizer": None,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": False},
    }
    assert _read(described, size=1200).add_space_prefix is prefix


def test_added_tokens_are_control_or_user_defined():
    core = byte_level("gpt-2")
    core.add_special_tokens(["<|tool|>"])
    core.add_tokens([AddedToken("<think>", special=False)])
    data = _read(json.loads(core.to_str()))
    kinds = dict(zip(data.tokens, data.token_types, strict=True))
    assert (kinds["<s>"], kinds["<|tool|>"], kinds["<think>"], kinds["a"]) == (3, 3, 4, 1)


def test_embedding_rows_without_a_token_get_an_unused_one():
    core = byte_level("gpt-2")
    count = core.get_vocab_size()
    data = _read(json.loads(core.to_str()), size=count + 3)
    assert data.tokens[count:] == tuple(f"[PAD{token}]" for token in range(count, count + 3))
    assert data.token_types[count:] == (5, 5, 5)


def test_merges_may_be_strings_or_pairs():
    described = json.loads(byte_level("gpt-2").to_str())
    pairs = described["model"]["merges"]
    strings = [merge if isinstance(merge, str) else " ".join(merge) for merge in pairs]
    described["model"]["merges"] = strings
    first = _read(described)
    described["model"]["merges"] = [merge.split(" ") for merge in strings]
    assert _read(described) == first


@pytest.mark.parametrize("written", ["<s>", {"content": "<s>", "lstrip": False}])
def test_special_tokens_are_found_by_their_text(written):
    data = _read(
        json.loads(byte_level("gpt-2").to_str()), tokenizer_config={"bos_token": written, "eos_token": "<|end|>"}
    )
    assert (data.bos_token, data.eos_token, data.eot_token) == (0, 1, None)


def test_special_tokens_may_come_by_number_and_further_ends_from_the_generation_settings():
    data = _read(
        json.loads(byte_level("gpt-2").to_str()),
        config={"bos_token_id": 0, "eos_token_id": [1, 5]},
        generation_config={"eos_token_id": [1, 7]},
    )
    assert (data.bos_token, data.eos_token, data.eot_token) == (0, 1, 7)


def test_whether_a_bos_is_added_follows_the_flag_and_else_the_template():
    core = byte_level("gpt-2")
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    described, names = json.loads(core.to_str()), {"bos_token": "<s>", "eos_token": "<|end|>"}
    assert _read(described, tokenizer_config=names).add_bos
    assert not _read(described, tokenizer_config=names).add_eos
    assert not _read(described, tokenizer_config=names | {"add_bos_token": False}).add_bos
    core.post_processor = processors.Sequence([processors.ByteLevel(), core.post_processor])
    assert _read(json.loads(core.to_str()), tokenizer_config=names).add_bos
    core.post_processor = processors.ByteLevel()
    assert not _read(json.loads(core.to_str()), tokenizer_config=names).add_bos
    assert _read(json.loads(core.to_str()), tokenizer_config=names | {"add_bos_token": True}).add_bos


@pytest.mark.parametrize(
    ("settings", "file", "template"),
    [
        ({"chat_template": "A"}, None, "A"),
        ({"chat_template": "A"}, "B", "B"),
        ({"chat_template": [{"name": "rag", "template": "R"}, {"name": "default", "template": "D"}]}, None, "D"),
        ({"chat_template": [{"name": "rag", "template": "R"}]}, None, None),
        ({}, None, None),
    ],
)
def test_the_chat_template_is_found(settings, file, template):
    data = _read(json.loads(byte_level("gpt-2").to_str()), tokenizer_config=settings, chat_template=file)
    assert data.chat_template == template


def _changed(**changes: Any) -> dict[str, Any]:
    described = json.loads(byte_level("gpt-2").to_str())
    described["model"] |= changes.pop("model", {})
    return described | changes


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"model": {"type": "WordLevel"}}, UnsupportedModel, "'WordLevel'"),
        ({"model": {"type": "Unigram"}}, UnsupportedModel, "'Unigram'"),
        ({"model": {"dropout": 0.1}}, UnsupportedModel, "dropout"),
        ({"model": {"end_of_word_suffix": "</w>"}}, UnsupportedModel, "end_of_word_suffix"),
        ({"model": {"ignore_merges": True}}, UnsupportedModel, "ignore_merges = True"),
        ({"model": {"merges": ["a b c"]}}, InvalidModelFile, "'a b c'"),
        ({"model": {"merges": [5]}}, InvalidModelFile, "a merge of the tokenizer is '5'"),
        ({"model": {"vocab": {"x": 512}}}, InvalidModelFile, "'x' has number 512.*512 embedding rows"),
        ({"model": {"vocab": {"x": -1}}}, InvalidModelFile, "number -1"),
        ({"model": {"vocab": {"x": "0"}}}, InvalidModelFile, "no proper number"),
        ({"normalizer": {"type": "Lowercase"}}, UnsupportedModel, "Lowercase"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, UnsupportedModel, "Whitespace"),
        ({"pre_tokenizer": None}, UnsupportedModel, "pre-tokenizer"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, UnsupportedModel, "add_prefix_space"),
        ({"added_tokens": [{"content": "<s>", "id": 0, "lstrip": True}]}, UnsupportedModel, "'<s>' takes neighbours"),
        ({"added_tokens": ["<s>"]}, InvalidModelFile, "not an object"),
        ({"model": {"byte_fallback": True}}, UnsupportedModel, "SentencePiece tokenizer with normalizer None"),
    ],
)
def test_what_cannot_be_expressed_is_refused_by_name(changes, error, words):
    with pytest.raises(error, match=words):
        _read(_changed(**changes))


def test_a_special_token_that_is_not_in_the_vocabulary_is_named():
    with pytest.raises(InvalidModelFile, match="the eos token '</nope>' is not in the vocabulary"):
        _read(_changed(), tokenizer_config={"eos_token": "</nope>"})
