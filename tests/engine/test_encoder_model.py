"""Encoders give the vectors that other implementations give, and the same bits whatever the borders and the company."""

import itertools

import attrs
import numpy as np
import pytest
import safetensors.torch
import tokenizers
import torch
from support.stages import imported, stage_of
from support.tiny_bert import write_tiny_bert, write_tiny_bert_gguf

from meshnode.engine.batching import Batch
from meshnode.engine.encoder_model import EncoderModel
from meshnode.engine.executor import Generation, StageReservation
from meshnode.engine.worker_messages import BatchLimits, Envelope, Generate, Progress, Reserve, Step, StepDone
from meshnode.files.importing import import_gguf
from meshnode.files.shard_file import shard_path
from meshnode.files.tokenizer_shard import decode_tokenizer
from meshnode.text.vocabulary import build_tokenizer
from meshnode.types.generation import SamplingParameters
from meshnode.types.ids import SessionId
from meshnode.wire.failures import Failed

TEXTS = [
    "hello world",
    "A much longer text, of many sentences. " * 30,
    "Ünïcödé, 漢字 and [SEP] what is not a word: xqzzyk\u200b!",
    "def f(x):\n\treturn x ** 2",
]


class Reference:
    """The model as torch's own encoder layers and the tokenizers library compute it, in float32."""

    def __init__(self, folder):
        self.weights = safetensors.torch.load_file(folder / "model.safetensors")
        self.tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.layers = [self._layer(f"encoder.layer.{block}.") for block in range(6)]

    def _layer(self, prefix):
        layer = torch.nn.TransformerEncoderLayer(
            384, 12, 1536, dropout=0, activation="gelu", layer_norm_eps=1e-12, batch_first=True
        )
        names = {
            "self_attn.out_proj": "attention.output.dense", "norm1": "attention.output.LayerNorm",
            "linear1": "intermediate.dense", "linear2": "output.dense", "norm2": "output.LayerNorm",
        }  # fmt: skip
        state = {f"{ours}.{kind}": self.weights[f"{prefix}{theirs}.{kind}"]
                 for ours, theirs in names.items() for kind in ("weight", "bias")}  # fmt: skip
        for kind in ("weight", "bias"):
            parts = [self.weights[f"{prefix}attention.self.{name}.{kind}"] for name in ("query", "key", "value")]
            state[f"self_attn.in_proj_{kind}"] = torch.cat(parts)
        layer.load_state_dict(state)
        return layer.eval()

    def tokens(self, text):
        return self.tokenizer.encode(text, add_special_tokens=True).ids

    @torch.inference_mode()
    def vector(self, tokens):
        table = {
            name.removeprefix("embeddings."): value for name, value in self.weights.items() if "encoder" not in name
        }
        rows = table["word_embeddings.weight"][tokens] + table["position_embeddings.weight"][: len(tokens)]
        rows = rows + table["token_type_embeddings.weight"][0]
        norm = table["LayerNorm.weight"], table["LayerNorm.bias"]
        rows = torch.nn.functional.layer_norm(rows, (384,), *norm, 1e-12)[None]
        for layer in self.layers:
            rows = layer(rows)
        return torch.nn.functional.normalize(rows[0].mean(0), dim=0).numpy()


def ask(batch, answers, *messages):
    """Have a batch answer messages, each with its body, at once; return the answers in order."""
    exchanges = range(1, len(messages) + 1)
    for exchange, (message, body) in zip(exchanges, messages, strict=True):
        batch.accept(Envelope(exchange, message, body))
    while not batch.is_idle:
        batch.step()
    found = list(answers)
    answers.clear()
    return found


def node(spec):
    answers = []
    return Batch(EncoderModel.load(spec), BatchLimits(16, 8), answers.append), answers


def generation(tokens, name="s", pooling="mean"):
    sampling = SamplingParameters(pooling=pooling)
    return Generate(Generation(SessionId(name), tuple(tokens), len(tokens), 1, sampling), 64)


def vectors(spec, *texts):
    """Return each text's vector, all asked for together."""
    batch, answers = node(spec)
    questions = [(generation(tokens, f"s{index}", spec.config.pooling), b"") for index, tokens in enumerate(texts)]
    found = {}
    for envelope in ask(batch, answers, *questions):
        if isinstance(envelope.message, Progress):
            found |= {sampled.exchange: sampled.vector for sampled in envelope.message.sampled}
    assert not batch.sessions
    return [found[exchange] for exchange in sorted(found)]


def over_stages(specs, tokens, pooling="cls"):
    """Return a text's vector over stages, driven as a coordinator does."""
    rows = b""
    for spec in specs:
        batch, answers = node(spec)
        sampling = SamplingParameters(pooling=pooling) if spec.head else None
        part = StageReservation(
            spec.blocks, spec.embedding, spec.head, len(tokens), len(tokens) * spec.head, (), sampling
        )
        text = tuple(tokens) if spec.embedding else ()
        step = Step(SessionId("s"), 0, text, sample=spec.head)
        *_, done = ask(batch, answers, (Reserve(SessionId("s"), part), b""), (step, rows))
        assert isinstance(done.message, StepDone), done
        rows = done.body
    return done.message.token.vector


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    return imported(write_tiny_bert(folder / "source"), folder / "shards"), folder / "shards"


def test_minilm_agrees_with_a_reference(minilm_folder, tmp_path):
    reference = Reference(minilm_folder)
    manifest = imported(minilm_folder, tmp_path)
    tokenizer = build_tokenizer(decode_tokenizer(shard_path(tmp_path, manifest.shards[0].id).read_bytes()))
    tokens = [tokenizer.encode(text, add_bos=True) + tokenizer.ending for text in TEXTS]
    plain = [text.replace("[SEP]", "[ sep ]") for text in TEXTS]  # control tokens in a text are text to us
    assert tokens == [reference.tokens(text) for text in plain]
    found = vectors(stage_of(manifest, tmp_path), *tokens)
    for raw, text in zip(found, tokens, strict=True):
        vector = np.frombuffer(raw, "<f4")
        assert float(vector @ reference.vector(text)) >= 0.9999
        assert float(np.linalg.norm(vector)) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("borders", [[], [1], [2], [1, 2]])
def test_every_split_and_every_company_gives_the_same_bits(tiny, borders):
    manifest, folder = tiny
    text, other = [2, 4, 5, 6, 10, 3, 7, 9, 8, 11, 3] * 3, [2, 7, 3]
    (alone,) = vectors(stage_of(manifest, folder), text)
    assert vectors(stage_of(manifest, folder), other, text, other)[1] == alone
    edges = [0, *borders, manifest.config.block_count]
    specs = [stage_of(manifest, folder, *pair) for pair in itertools.pairwise(edges)]
    assert over_stages(specs, text) == alone


def test_a_gguf_file_of_the_same_weights_is_the_same_model(tiny, tmp_path):
    manifest, folder = tiny
    found = import_gguf(write_tiny_bert_gguf(tmp_path / "m.gguf"), tmp_path / "shards")
    assert found.config == attrs.evolve(manifest.config, norm_epsilon=found.config.norm_epsilon)  # float32 there
    data = [
        decode_tokenizer(shard_path(place, each.shards[0].id).read_bytes())
        for place, each in ((folder, manifest), (tmp_path / "shards", found))
    ]
    assert data[0].tokens == data[1].tokens
    encoded = [build_tokenizer(each).encode("Hello worlds, abc!", add_bos=True) for each in data]
    assert encoded[0] == encoded[1]
    specs = stage_of(manifest, folder), stage_of(found, tmp_path / "shards")
    assert vectors(specs[0], encoded[0]) == vectors(specs[1], encoded[0])


def test_it_does_not_write(tiny):
    manifest, folder = tiny
    batch, answers = node(stage_of(manifest, folder))
    question = Generate(Generation(SessionId("s"), (2, 4, 3), 3, 5, SamplingParameters()), 64)
    (refusal,) = ask(batch, answers, (question, b""))
    assert isinstance(refusal.message, Failed)
    assert "makes vectors" in refusal.message.message
