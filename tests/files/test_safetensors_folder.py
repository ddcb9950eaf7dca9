"""Hugging Face checkpoints: the same model as its GGUF, or a refusal that names what is wrong."""

import json
import math
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from support.stages import stage_of
from support.tiny_checkpoint import CONFIG, as_gguf, random_weights, write_tiny_checkpoint
from support.tiny_gguf import write_tiny_llama

from meshnode.engine.stage_model import Rows, StageModel
from meshnode.errors import InvalidModelFile, SourceUnavailable, UnsupportedModel
from meshnode.files.acquisitions import AcquireModel
from meshnode.files.importing import import_gguf, import_model
from meshnode.files.safetensors_folder import SafetensorsFolder, open_folder
from meshnode.files.shard_file import publish_shard
from meshnode.types.manifest import RopeStyle


def _import(folder: Path, shards: Path):
    staging = shards / "staging"
    staging.mkdir(parents=True, exist_ok=True)
    with open_folder(folder) as model:
        manifest = import_model(model, staging, lambda _kind, _block: True, lambda _done, _total: None)
    for shard in {shard.id for shard in manifest.shards}:
        publish_shard(staging, shards, shard)
    return manifest


def _logits(manifest, folder: Path) -> torch.Tensor:
    model = StageModel.load(stage_of(manifest, folder, context=64, cache=1 << 24))
    cache = model.open_cache(20)
    (logits,) = model.forward([Rows(cache, torch.arange(3, 19), "all")])
    return logits


@pytest.mark.parametrize("files", [1, 3])
def test_computes_what_the_same_weights_in_a_gguf_file_compute(files, tmp_path):
    weights = random_weights(CONFIG)
    folder = write_tiny_checkpoint(tmp_path / "checkpoint", weights=weights, files=files)
    gguf_file = write_tiny_llama(
        tmp_path / "m.gguf", quantization="F32", hidden=64, heads=4, kv_heads=2, feed_forward=128, context=512, tied=False,
        extra=as_gguf(weights, CONFIG),
    )  # fmt: skip
    ours, reference = _import(folder, tmp_path / "a"), import_gguf(gguf_file, tmp_path / "b")
    assert (ours.config.rope_style, reference.config.rope_style) == (RopeStyle.HALVES, RopeStyle.INTERLEAVED)
    torch.testing.assert_close(
        _logits(ours, tmp_path / "a"), _logits(reference, tmp_path / "b"), rtol=0.02, atol=0.02
    )  # the order of additions differs within a head, so bits may


def test_one_file_or_many_give_the_same_model(tmp_path):
    one = _import(write_tiny_checkpoint(tmp_path / "one"), tmp_path / "s")
    many = _import(write_tiny_checkpoint(tmp_path / "many", files=4), tmp_path / "s")
    assert (one.id, one.shards) == (many.id, many.shards)
    assert (one.name, many.name) == ("one", "many")


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_bytes_are_untouched_whatever_their_type(dtype, tmp_path):
    weights = {name: values.astype(dtype) for name, values in random_weights(CONFIG).items()}
    folder = write_tiny_checkpoint(tmp_path / "c", weights=weights)
    with open_folder(folder) as model:
        assert (
            model.tensors["blk.1.attn_q.weight"].region.read()
            == weights["model.layers.1.self_attn.q_proj.weight"].tobytes()
        )
        assert model.tensors["output.weight"].descriptor.ggml_type == {4: "F32", 2: "F16"}[np.dtype(dtype).itemsize]


def test_reads_the_configuration(tmp_path):
    with open_folder(write_tiny_checkpoint(tmp_path / "c", config={"head_dim": 16})) as model:
        config = model.config
    assert (config.block_count, config.hidden_size, config.feed_forward_size) == (2, 64, 128)
    assert (config.head_count, config.kv_head_count, config.head_size, config.rope_size) == (4, 2, 16, 16)
    assert (config.vocabulary_size, config.context_length, config.norm_epsilon) == (320, 512, 1e-5)
    assert (config.rope_base, config.rope_scale, config.rope_factors) == (10000.0, 1.0, None)


LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip


def _llama3_reference(base: float, dim: int) -> list[float]:
    """Transcribed from llama.cpp's convert_hf_to_gguf.py, LlamaModel.generate_extra_tensors."""
    factors = []
    for i in range(0, dim, 2):
        freq = 1.0 / (base ** (i / dim))
        wavelen = 2 * math.pi / freq
        if wavelen < 64 / 4.0:
            factors.append(1.0)
        elif wavelen > 64 / 1.0:
            factors.append(8.0)
        else:
            smooth = (64 / wavelen - 1.0) / (4.0 - 1.0)
            factors.append(1 / ((1 - smooth) / 8.0 + smooth))
    return factors


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_llama_3_scaling_becomes_factors(key, tmp_path):
    with open_folder(write_tiny_checkpoint(tmp_path / "c", config={key: LLAMA3, "rope_theta": 10000.0})) as model:
        factors = model.config.rope_factors
    assert factors == pytest.approx(_llama3_reference(10000.0, 16), rel=1e-6)
    assert factors[0] == 1.0
    assert factors[-1] == 8.0
    assert any(1.0 < factor < 8.0 for factor in factors)
    assert struct.unpack("<8f", struct.pack("<8f", *factors)) == factors  # exactly float32, as in GGUF files


def test_linear_scaling_divides_positions(tmp_path):
    with open_folder(
        write_tiny_checkpoint(tmp_path / "c", config={"rope_scaling": {"type": "linear", "factor": 2}})
    ) as model:
        assert model.config.rope_scale == 2.0


@pytest.mark.parametrize(
    ("window", "context"), [({"sliding_window": 128}, 128), ({"sliding_window": None}, 512), ({}, 512)]
)
def test_mistrals_window_limits_the_context_to_where_it_makes_no_difference(window, context, tmp_path):
    settings = {"architectures": ["MistralForCausalLM"], **window}
    with open_folder(write_tiny_checkpoint(tmp_path / "c", config=settings)) as model:
        assert model.config.context_length == context


def test_a_tied_head_is_the_embedding(tmp_path):
    manifest = _import(write_tiny_checkpoint(tmp_path / "c", config={"tie_word_embeddings": True}), tmp_path / "s")
    assert manifest.config.tied_embedding
    assert manifest.shards[-1].tensors[0].name == "output.weight"


def test_a_tied_checkpoint_may_repeat_its_embedding_but_not_differ_from_it(tmp_path):
    settings = CONFIG | {"tie_word_embeddings": True}
    weights = random_weights(settings)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].copy()
    with open_folder(write_tiny_checkpoint(tmp_path / "same", config=settings, weights=weights)):
        pass
    weights["lm_head.weight"][5, 5] += 1
    other = write_tiny_checkpoint(tmp_path / "other", config=settings, weights=weights)
    with pytest.raises(InvalidModelFile, match=r"lm_head\.weight is another matrix"), open_folder(other):
        pass


def test_stored_rotary_frequencies_are_not_needed(tmp_path):
    weights = random_weights(CONFIG) | {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32)}
    with open_folder(write_tiny_checkpoint(tmp_path / "c", weights=weights)) as model:
        assert len(model.tensors) == 21


@pytest.mark.parametrize(
    ("config", "error", "words"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, UnsupportedModel, "GPT2LMHeadModel.*known: LlamaForCausalLM"),
        ({"architectures": None}, UnsupportedModel, "known: LlamaForCausalLM, MistralForCausalLM"),
        ({"quantization_config": {"quant_method": "gptq"}}, UnsupportedModel, "quantization_config"),
        ({"attention_bias": True}, UnsupportedModel, "attention_bias"),
        ({"mlp_bias": True}, UnsupportedModel, "mlp_bias"),
        ({"hidden_act": "gelu"}, UnsupportedModel, "hidden_act 'gelu'"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, UnsupportedModel, "'yarn'"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, UnsupportedModel, "'dynamic'"),
        ({"rope_scaling": {"rope_type": "llama3"}}, InvalidModelFile, "'factor' is missing in rope_scaling"),
        ({"rope_scaling": LLAMA3 | {"low_freq_factor": 9.0}}, InvalidModelFile, "makes no sense"),
        ({"rope_theta": float("nan")}, InvalidModelFile, "rope_base is nan"),
        ({"rope_theta": 10**400}, InvalidModelFile, "'rope_theta'"),
        ({"partial_rotary_factor": 2.0}, InvalidModelFile, "partial_rotary_factor"),
        ({"num_hidden_layers": 3}, InvalidModelFile, r"lacks 9 of 30 tensors, first 'blk\.2\."),
        ({"num_hidden_layers": 1}, UnsupportedModel, r"'blk\.1\..*' has no place"),
        ({"num_hidden_layers": "2"}, InvalidModelFile, "'num_hidden_layers' in config.json is of type str"),
        ({"intermediate_size": 96}, InvalidModelFile, r"should have shape .*96.*, but has .*128"),
        ({"num_attention_heads": 0}, InvalidModelFile, "0 heads"),
        ({"hidden_size": None}, InvalidModelFile, "'hidden_size' is missing in config.json"),
        ({"vocab_size": 100}, InvalidModelFile, "100 embedding rows"),
    ],
)
def test_configurations_that_cannot_be_run_are_refused_by_name(config, error, words, tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "c", config=config, weights=random_weights(CONFIG))
    with pytest.raises(error, match=words), open_folder(folder):
        pass


def test_unknown_tensors_are_refused_by_name(tmp_path):
    weights = random_weights(CONFIG) | {"model.layers.0.self_attn.q_proj.bias": np.zeros(64, np.float32)}
    with (
        pytest.raises(UnsupportedModel, match=r"q_proj\.bias"),
        open_folder(write_tiny_checkpoint(tmp_path, weights=weights)),
    ):
        pass


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "a\\b", "x\0y"])
def test_an_index_cannot_reach_out_of_the_folder(name, tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "c", files=2)
    index = folder / "model.safetensors.index.json"
    table = json.loads(index.read_text())
    table["weight_map"]["lm_head.weight"] = name
    index.write_text(json.dumps(table))
    with pytest.raises(InvalidModelFile, match="not the name of a file in the folder"), open_folder(folder):
        pass


def test_files_may_be_symbolic_links_as_in_the_hugging_face_cache(tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "c")
    real = (folder / "model.safetensors").rename(tmp_path / "blob")
    (folder / "model.safetensors").symlink_to(real)
    with open_folder(folder) as model:
        assert len(model.tensors) == 21


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named(name, tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "c")
    (folder / name).unlink()
    with pytest.raises(SourceUnavailable, match=name), open_folder(folder):
        pass


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.json", "{", "config.json is not JSON"),
        ("config.json", "[]", "not a JSON object"),
        ("tokenizer.json", "\0", "tokenizer.json is not JSON"),
        ("config.json", "[" * 100_000, "not JSON"),
    ],
)
def test_json_that_is_not_json_is_named(name, content, words, tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "c", texts={name: content})
    with pytest.raises(InvalidModelFile, match=words), open_folder(folder):
        pass


def _safetensors(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _one(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"t": {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}}


@pytest.mark.parametrize(
    ("raw", "error", "words"),
    [
        (b"abc", InvalidModelFile, "3 bytes"),
        (_safetensors({}, length=1 << 60), InvalidModelFile, "would have"),
        (_safetensors({}, length=1000), InvalidModelFile, "truncated"),
        (_safetensors(b"nonsense"), InvalidModelFile, "not JSON"),
        (_safetensors([]), InvalidModelFile, "not a JSON object"),
        (_safetensors({"t": 5}), InvalidModelFile, "no description"),
        (_safetensors({"t": {"dtype": "F32"}}), InvalidModelFile, "no proper shape"),
        (_safetensors(_one(shape=(-2,))), InvalidModelFile, "no proper shape"),
        (_safetensors(_one(shape=(True,))), InvalidModelFile, "no proper shape"),
        (_safetensors(_one("F8_E4M3")), UnsupportedModel, "F8_E4M3; known: F32, F16, BF16"),
        (_safetensors(_one(shape=(3,)), bytes(8)), InvalidModelFile, "another size"),
        (_safetensors(_one(offsets=(8, 16)), bytes(16)), InvalidModelFile, "overlap or leave a hole"),
        (_safetensors(_one(), bytes(7)), InvalidModelFile, "truncated"),
        (_safetensors({**_one(), "u": _one()["t"]}, bytes(8)), InvalidModelFile, "overlap"),
    ],
)
def test_hostile_safetensors_headers_are_refused(raw, error, words, tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "c")
    (folder / "model.safetensors").write_bytes(raw)
    with pytest.raises(error, match=words), open_folder(folder):
        pass


def test_every_cut_of_a_safetensors_file_is_called_truncated(tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "c")
    raw = (folder / "model.safetensors").read_bytes()
    for length in (8, 100, 1500, len(raw) // 2, len(raw) - 1):
        (folder / "model.safetensors").write_bytes(raw[:length])
        with pytest.raises(InvalidModelFile, match="truncated"), open_folder(folder):
            pass


async def test_a_folder_is_acquired_by_its_path_and_seen_to_change(data, tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "My Checkpoint")
    async with data.running() as node:
        first = await node.mailbox.ask(AcquireModel(str(folder)))
        assert first.name == "my-checkpoint"
        assert await node.mailbox.ask(AcquireModel(str(folder) + "/")) == first
        (folder / "chat_template.jinja").write_text("{{ messages }}")
        second = await node.mailbox.ask(AcquireModel(str(folder)))
        assert second.id != first.id
        assert [a.id == b.id for a, b in zip(first.shards, second.shards, strict=True)] == [False] + [True] * 4


def test_what_looks_like_a_path_is_taken_for_a_folder():
    source = SafetensorsFolder()
    assert [source.accepts(text) for text in ("./x", "/x", "~/x", "x/y", ".", "llama", "starter")] == [True] * 5 + [
        False
    ] * 2
