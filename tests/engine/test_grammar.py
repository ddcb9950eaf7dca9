"""Grammars decide what can be sampled: whatever the model wants, the answer has its form."""

import json

import attrs
import jsonschema
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.stages import stage_of, tiny_manifest
from support.tiny_gguf import write_tiny_llama

from meshnode.engine.batching import Batch
from meshnode.engine.executor import Generation
from meshnode.engine.grammar import Grammars, GrammarState, GrammarVocabulary, check_grammar
from meshnode.engine.sampling import sample
from meshnode.engine.stage_model import StageModel
from meshnode.engine.worker_messages import BatchLimits, Envelope, Generate, Progress
from meshnode.errors import EngineError, GrammarRefused
from meshnode.files.importing import import_gguf
from meshnode.files.shard_file import shard_path
from meshnode.files.tokenizer_shard import decode_tokenizer
from meshnode.types.generation import SamplingParameters
from meshnode.types.ids import SessionId
from meshnode.types.token_bytes import end_tokens, token_bytes
from meshnode.types.tokenizer import TokenizerData
from meshnode.wire.failures import Failed

LETTERS = [chr(code) for code in range(32, 127)]
WORDS = ["true", "false", "null", '{"', '":', '": ', ', "', '"}', "}]", "ab", "abc", "12", '"]', "], ", "\u00e9"]
DATA = TokenizerData(
    model="llama",
    pre="default",
    tokens=("<unk>", "<s>", "</s>", "<call>", "<spare>", *(f"<0x{byte:02X}>" for byte in range(256)), *LETTERS, *WORDS),
    token_types=(2, 3, 3, 3, 5, *[6] * 256, *[1] * (len(LETTERS) + len(WORDS))),
    scores=tuple([0.0] * (5 + 256 + len(LETTERS) + len(WORDS))),
    bos_token=1,
    eos_token=2,
)
PIECES = token_bytes(DATA)
SIZE = len(PIECES) + 7  # models round their matrices up
END = 2
VOCABULARY = GrammarVocabulary.of(DATA, SIZE)


def json_grammar(schema):
    spacing = {"x-guidance": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}}
    return "start: value\nvalue: %json " + json.dumps({**schema, **spacing})


def begin(grammar):
    return GrammarState(VOCABULARY, VOCABULARY.compile(grammar))


def answer(state, seed, temperature=1.5, limit=3000):
    """Sample from random logits until an end token."""
    source, tokens = np.random.default_rng(seed), []
    parameters = SamplingParameters(temperature=temperature, seed=seed)
    while len(tokens) < limit:
        logits = torch.from_numpy(source.standard_normal(SIZE).astype(np.float32) * 4)
        token = sample(logits, parameters, position=len(tokens), history=tokens, allowed=state.allowed()).token
        if token == END:
            return tokens
        state.advance(token)
        tokens.append(token)
    raise AssertionError("it never ends")


def text(tokens):
    return b"".join(PIECES[token] for token in tokens).decode()


def allowed_tokens(state):
    return set(np.flatnonzero(state.allowed()).tolist())


NAMES = st.text("abcdefgh_", min_size=1, max_size=6)
LEAVES = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.builds(
        lambda low, more: {"type": "integer", "minimum": low, "maximum": low + more},
        st.integers(-99, 99),
        st.integers(0, 500),
    ),
    st.builds(
        lambda low, more: {"type": "string", "minLength": low, "maxLength": low + more},
        st.integers(0, 3),
        st.integers(0, 5),
    ),
    st.builds(
        lambda values: {"enum": values},
        st.lists(st.one_of(NAMES, st.integers(-9, 9), st.none()), min_size=1, max_size=4),
    ),
    st.builds(lambda value: {"const": value}, NAMES),
)


def _array(item):
    return st.builds(
        lambda items, low, more: {"type": "array", "items": items, "minItems": low, "maxItems": low + more},
        item, st.integers(0, 2), st.integers(0, 2),
    )  # fmt: skip


def _object(item):
    return st.dictionaries(NAMES, item, max_size=3).flatmap(
        lambda properties: st.sets(st.sampled_from(sorted(properties)) if properties else st.nothing()).map(
            lambda required: {
                "type": "object",
                "properties": properties,
                "required": sorted(required),
                "additionalProperties": False,
            }
        )
    )


SCHEMAS = st.recursive(LEAVES, lambda item: st.one_of(_array(item), _object(item)), max_leaves=5)


@settings(max_examples=120, deadline=None)
@given(SCHEMAS, st.integers(0, 1 << 32))
def test_whatever_the_model_wants_the_answer_fits_the_schema(schema, seed):
    tokens = answer(begin(json_grammar(schema)), seed)
    jsonschema.validate(json.loads(text(tokens)), schema)


@settings(max_examples=40, deadline=None)
@given(SCHEMAS, st.integers(0, 1 << 32), st.data())
def test_masks_are_a_function_of_the_answer_so_far(schema, seed, data):
    grammar = json_grammar(schema)
    followed = begin(grammar)
    tokens = answer(followed, seed)
    kept = data.draw(st.integers(0, len(tokens)))
    followed.truncate(kept)
    replayed = begin(grammar)
    for token in tokens[:kept]:
        replayed.advance(token)
    for token in [*tokens[kept:], END]:
        assert np.array_equal(followed.allowed(), replayed.allowed())
        followed.advance(token)
        replayed.advance(token)


def test_end_tokens_are_allowed_exactly_when_the_grammar_may_stop():
    state = begin("start: /[ab]{1,2}/")
    a = DATA.tokens.index("a")
    assert END not in allowed_tokens(state)
    state.advance(a)
    assert END in allowed_tokens(state)
    assert a in allowed_tokens(state)
    state.advance(a)
    assert allowed_tokens(state) == {END}


def test_after_an_end_token_there_is_a_way_back():
    state = begin("start: /[ab]{2}/")
    a = DATA.tokens.index("a")
    for token in (a, a, END):
        state.advance(token)
    assert allowed_tokens(state) == {END}
    state.truncate(1)
    assert a in allowed_tokens(state)
    assert END not in allowed_tokens(state)


def test_every_way_to_spell_a_text_is_allowed_where_the_grammar_does_not_force_one():
    state = begin('%llguidance {"no_forcing": true}\nstart: "abcd"')
    assert {text([token]) for token in allowed_tokens(state)} == {"a", "ab", "abc"}


def test_control_tokens_come_by_name_or_number_and_never_as_text():
    assert allowed_tokens(begin('start: <call> "a"')) == {3}
    assert allowed_tokens(begin('start: <[3]> "a"')) == {3}
    state = begin(r"start: /(.|\n)*/")
    assert not allowed_tokens(state) & {0, 1, 3, 4}
    assert not allowed_tokens(state) & set(range(len(PIECES), SIZE))


def test_a_model_that_wants_nothing_of_what_is_allowed_gets_it_anyway():
    state = begin('start: "a"')
    logits = torch.full((SIZE,), 5.0)
    for wish in (-torch.inf, torch.nan):
        logits[list(allowed_tokens(state))] = wish
        for temperature in (0.0, 1.5):
            parameters = SamplingParameters(temperature=temperature, top_k=3, logit_bias=((END, 100.0),))
            event = sample(logits, parameters, position=0, history=[], allowed=state.allowed())
            assert event.token in allowed_tokens(state)


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        ("start: nothing", "unknown name"),
        ('{"grammars"', "EOF while parsing"),
        (json_grammar({"type": "wishes"}), "wishes"),
        (json_grammar({"type": "string", "pattern": "(?=a)"}), "look-around"),
        ("start: /a{1,3}/" + " " * (1 << 20), "characters"),
    ],
)
def test_a_refused_grammar_says_why(grammar, reason):
    with pytest.raises(GrammarRefused, match=reason) as refusal:
        check_grammar(grammar, VOCABULARY)
    assert len(str(refusal.value)) < 500


def test_an_answer_that_does_not_follow_its_grammar_is_refused(spec):
    grammars = Grammars(spec)
    with pytest.raises(GrammarRefused, match="cannot follow"):
        grammars.begin('start: "a"', [END])


def test_a_vocabulary_without_an_end_is_refused():
    endless = attrs.evolve(DATA, eos_token=None, tokens=("<unk>", "<s>", "<e>", *DATA.tokens[3:]))
    with pytest.raises(GrammarRefused, match="end token"):
        GrammarVocabulary.of(endless, SIZE)


def test_a_stage_without_its_tokenizer_says_so(spec):
    with pytest.raises(EngineError, match="tokenizer"):
        Grammars(attrs.evolve(spec, tokenizer="/nowhere")).begin('start: "a"', [])
    assert Grammars(attrs.evolve(spec, tokenizer="/nowhere")).begin(None, []) is None


# In the batch, with a model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    manifest = tiny_manifest(write_tiny_llama(folder / "m.gguf"), folder / "shards")
    return manifest, folder / "shards"


@pytest.fixture(scope="module")
def spec(tiny):
    return stage_of(*tiny)


class Desk:
    """A batch over a stage, and what it has said."""

    def __init__(self, stage):
        self.said = []
        self.batch = Batch(stage, BatchLimits(512, 128), self.said.append)

    def generate(self, exchange, prompt, count, sampling, known=(), ends=frozenset({0, 2})):
        tokens = (*prompt, *known)
        wanted = Generation(SessionId(f"s{exchange}"), tokens, len(prompt), count - len(known), sampling, ends)
        self.batch.accept(Envelope(exchange, Generate(wanted, 10_000)))

    def run(self):
        while not self.batch.is_idle:
            self.batch.step()

    def tokens(self, exchange):
        progress = [each.message for each in self.said if isinstance(each.message, Progress)]
        return [each.token for message in progress for each in message.sampled if each.exchange == exchange]

    def failures(self):
        return {each.exchange: each.message for each in self.said if isinstance(each.message, Failed)}


@settings(max_examples=12, deadline=None)
@given(SCHEMAS, st.integers(0, 1 << 32))
def test_a_small_model_at_temperature_answers_in_form(tiny_stage, schema, seed):
    stage, data = tiny_stage
    desk = Desk(stage)
    desk.generate(1, [70, 71, 72], 900, SamplingParameters(temperature=1.5, seed=seed, grammar=json_grammar(schema)))
    desk.run()
    *tokens, last = desk.tokens(1)
    assert last in end_tokens(data)
    pieces = token_bytes(data)
    jsonschema.validate(json.loads(b"".join(pieces[token] for token in tokens)), schema)


@pytest.fixture(scope="module")
def tiny_stage(tiny, spec):
    manifest, folder = tiny
    return StageModel.load(spec), decode_tokenizer(shard_path(folder, manifest.shards[0].id).read_bytes())


GRAMMAR = json_grammar({"type": "array", "items": {"type": "integer"}, "minItems": 12})


def test_grammars_do_not_touch_their_neighbours_in_the_batch(tiny_stage):
    stage, _ = tiny_stage
    samplings = [
        SamplingParameters(temperature=1.5, seed=seed, grammar=GRAMMAR if seed % 2 else None) for seed in range(4)
    ]
    alone = []
    for sampling in samplings:
        desk = Desk(stage)
        desk.generate(1, [80, 90], 40, sampling)
        desk.run()
        alone.append(desk.tokens(1))
    together = Desk(stage)
    for exchange, sampling in enumerate(samplings):
        together.generate(exchange, [80, 90], 40, sampling)
    together.run()
    assert [together.tokens(exchange) for exchange in range(4)] == alone


def test_an_answer_that_is_resumed_goes_on_as_it_would_have(tiny_stage):
    sampling = SamplingParameters(temperature=1.5, seed=3, grammar=GRAMMAR)
    desk = Desk(tiny_stage[0])
    desk.generate(0, [80, 90], 40, sampling)
    desk.run()
    whole = desk.tokens(0)
    for known in (1, len(whole) // 2, len(whole) - 1):
        desk.generate(known, [80, 90], 40, sampling, known=whole[:known])
        desk.run()
        assert [*whole[:known], *desk.tokens(known)] == whole


def test_a_refused_grammar_ends_its_own_generation_and_no_other(tiny_stage):
    desk = Desk(tiny_stage[0])
    desk.generate(1, [80], 5, SamplingParameters(temperature=0))
    desk.generate(2, [80], 5, SamplingParameters(grammar="start: nothing"))
    desk.run()
    assert len(desk.tokens(1)) == 5
    assert desk.failures().keys() == {2}
    assert desk.failures()[2].code == "grammar_refused"
    assert desk.batch.sessions == 0


@pytest.mark.starter
def test_the_starter_gives_valid_json_however_hot(starter_gguf, tmp_path):
    manifest = import_gguf(starter_gguf, tmp_path)
    stage = StageModel.load(stage_of(manifest, tmp_path, context=512))
    data = decode_tokenizer(shard_path(tmp_path, manifest.shards[0].id).read_bytes())
    pieces = token_bytes(data)
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 8},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 3},
        },
        "required": ["name", "age", "tags"],
        "additionalProperties": False,
    }
    desk = Desk(stage)
    for seed in (1, 2):
        sampling = SamplingParameters(temperature=1.5, seed=seed, grammar=json_grammar(schema))
        desk.generate(seed, [1, 4093, 198], 100, sampling)
    desk.run()
    for seed in (1, 2):
        *tokens, last = desk.tokens(seed)
        assert last in end_tokens(data)
        jsonschema.validate(json.loads(b"".join(pieces[token] for token in tokens)), schema)
