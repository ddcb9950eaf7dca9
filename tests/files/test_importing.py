"""GGUF files become shards: the same bytes, the same ids, or a refusal that names what is wrong."""

import json
import shutil
import struct

import gguf
import numpy as np
import pytest
import safetensors
from blake3 import blake3
from support.tiny_gguf import write_tiny_llama

from meshnode.errors import FileError, InvalidModelFile, SourceUnavailable, UnsupportedModel
from meshnode.files import importing
from meshnode.files.importing import import_gguf
from meshnode.files.local_gguf import open_gguf
from meshnode.files.manifests import manifest_id, name_from_title
from meshnode.files.shard_file import shard_path
from meshnode.files.tokenizer_shard import decode_tokenizer
from meshnode.types.generation import SamplingAdvice
from meshnode.types.manifest import CHUNK_BYTES, RopeStyle, ShardKind

TYPES = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
STARTER_ID = "4506b1a15f1017e41c6b31869d1bf2aa4aa1c16ac9f98d856c1e4af639cfce38"


def _edit(path, target, *, values=None, remove=()):
    """Copy a GGUF file through the reference package with other metadata values, or without some."""
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(target, "llama")
    values = dict(values or {})
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture" or key in remove or key in values:
            continue
        kind, inner = field.types[0], field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(key, field.contents(), kind, sub_type=inner)
    for key, (kind, value) in values.items():
        if key == "general.architecture":
            writer.kv_data[0][key].value = value
        else:
            writer.add_key_value(key, value, kind)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


U32, F32, STRING, BOOL = (gguf.GGUFValueType[name] for name in ("UINT32", "FLOAT32", "STRING", "BOOL"))


@pytest.mark.starter
def test_the_starter_becomes_one_shard_per_block_and_always_the_same_ones(starter_gguf, tmp_path):
    first = import_gguf(starter_gguf, tmp_path / "a")
    second = import_gguf(starter_gguf, tmp_path / "b")
    assert first == second
    assert (
        first.id == STARTER_ID
    )  # changes only with the form of shards or of canonical bytes, which strands every node
    assert [shard.kind for shard in first.shards] == [
        ShardKind.TOKENIZER, ShardKind.EMBEDDING, *[ShardKind.BLOCK] * 30, ShardKind.HEAD,
    ]  # fmt: skip
    assert [shard.block for shard in first.shards[2:32]] == list(range(30))
    assert (first.quantization, first.license) == ("Q4_1", "apache-2.0")
    assert first.id == manifest_id(first.config, first.shards)


def test_the_same_weights_under_another_name_have_the_same_id(tiny, tmp_path):
    other = _edit(tiny, tmp_path / "other.gguf", values={"general.name": (STRING, "Quite Another")})
    first, second = import_gguf(tiny, tmp_path / "s"), import_gguf(other, tmp_path / "s")
    assert (first.id, first.shards) == (second.id, second.shards)
    assert (first.name, second.name) == ("tiny-llama", "quite-another")


@pytest.mark.parametrize("kind", TYPES)
def test_every_shard_is_a_safetensors_file_with_the_unmodified_bytes(kind, tmp_path):
    path = write_tiny_llama(tmp_path / "m.gguf", quantization=kind, tied=False)
    manifest = import_gguf(path, tmp_path / "shards")
    source = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    seen = set()
    for shard in manifest.shards[1:]:
        raw = shard_path(tmp_path / "shards", shard.id).read_bytes()
        (length,) = struct.unpack("<Q", raw[:8])
        assert (8 + length) % 64 == 0
        header = json.loads(raw[8 : 8 + length])
        with safetensors.safe_open(shard_path(tmp_path / "shards", shard.id), framework="np") as opened:
            assert sorted(opened.keys()) == sorted(tensor.name for tensor in shard.tensors)
            types = json.loads(opened.metadata()["ggml"])
        for tensor in shard.tensors:
            start, end = (8 + length + offset for offset in header[tensor.name]["data_offsets"])
            assert raw[start:end] == source[tensor.name].data.tobytes()
            assert types[tensor.name] == [tensor.ggml_type, *tensor.shape]
            assert tensor.shape == tuple(reversed(source[tensor.name].shape.tolist()))
            assert header[tensor.name]["dtype"] == (kind if kind in ("F16", "BF16") and "norm" not in tensor.name else
                "F32" if kind == "F32" or "norm" in tensor.name else "U8")  # fmt: skip
            assert start % {"F32": 4, "F16": 2, "BF16": 2}.get(tensor.ggml_type, 1) == 0
            seen.add(tensor.name)
    assert seen == set(source)


def test_a_shards_id_and_chunks_are_hashes_of_its_bytes(tmp_path):
    path = write_tiny_llama(tmp_path / "m.gguf", quantization="F32", blocks=1, feed_forward=2048)
    manifest = import_gguf(path, tmp_path)
    assert max(shard.nbytes for shard in manifest.shards) > 2 * CHUNK_BYTES
    for shard in manifest.shards:
        raw = shard_path(tmp_path, shard.id).read_bytes()
        chunks = [raw[at : at + CHUNK_BYTES] for at in range(0, len(raw), CHUNK_BYTES)]
        assert (len(raw), blake3(raw).hexdigest()) == (shard.nbytes, shard.id)
        assert [blake3(chunk).hexdigest() for chunk in chunks] == list(shard.chunks)


def test_a_tied_head_gets_a_copy_of_the_embedding(tiny, tmp_path):
    manifest = import_gguf(tiny, tmp_path)
    embedding, head = manifest.shards[1], manifest.shards[-1]
    assert manifest.config.tied_embedding
    assert {tensor.name for tensor in head.tensors} == {"output.weight", "output_norm.weight"}
    with (
        safetensors.safe_open(shard_path(tmp_path, embedding.id), framework="np") as left,
        safetensors.safe_open(shard_path(tmp_path, head.id), framework="np") as right,
    ):
        assert np.array_equal(left.get_tensor("token_embd.weight"), right.get_tensor("output.weight"))


def test_nothing_but_shards_is_left_in_the_folder(tiny, tmp_path):
    manifest = import_gguf(tiny, tmp_path / "shards")
    files = {path for path in (tmp_path / "shards").rglob("*") if path.is_file()}
    assert files == {shard_path(tmp_path / "shards", shard.id) for shard in manifest.shards}


def test_reads_the_configuration(tmp_path):
    path = write_tiny_llama(
        tmp_path / "m.gguf", blocks=2, hidden=256, heads=8, kv_heads=2, feed_forward=512, context=2048
    )
    config = import_gguf(path, tmp_path).config
    assert (config.block_count, config.hidden_size, config.head_count, config.kv_head_count) == (2, 256, 8, 2)
    assert (config.head_size, config.feed_forward_size, config.context_length) == (32, 512, 2048)
    assert (config.vocabulary_size, config.rope_style) == (320, RopeStyle.INTERLEAVED)
    assert (config.rope_base, config.rope_scale, config.rope_factors) == (10000.0, 1.0, None)


def test_llama_3_frequencies_become_part_of_the_configuration(tmp_path):
    path = write_tiny_llama(tmp_path / "m.gguf", rope_freqs=True)
    manifest = import_gguf(path, tmp_path)
    assert manifest.config.rope_factors == tuple(np.linspace(1, 4, 32, dtype=np.float32).tolist())
    assert not any("rope" in tensor.name for shard in manifest.shards for tensor in shard.tensors)


def test_what_the_file_advises_on_sampling_goes_with_the_vocabulary(tiny, tmp_path):
    new = {"general.sampling.temp": (F32, 0.25), "general.sampling.top_k": (U32, 7)}
    manifest = import_gguf(_edit(tiny, tmp_path / "m.gguf", values=new), tmp_path)
    data = decode_tokenizer(shard_path(tmp_path, manifest.shards[0].id).read_bytes())
    assert data.sampling == SamplingAdvice(temperature=0.25, top_p=1.0, top_k=7, min_p=0.0)


def test_linear_rope_scaling_is_read(tiny, tmp_path):
    new = {"llama.rope.scaling.type": (STRING, "linear"), "llama.rope.scaling.factor": (F32, 4.0)}
    assert import_gguf(_edit(tiny, tmp_path / "m.gguf", values=new), tmp_path).config.rope_scale == 4.0


def test_rope_scaling_that_is_off_is_off_whatever_the_factor(tiny, tmp_path):
    new = {"llama.rope.scaling.type": (STRING, "none"), "llama.rope.scaling.factor": (F32, 4.0)}
    assert import_gguf(_edit(tiny, tmp_path / "m.gguf", values=new), tmp_path).config.rope_scale == 1.0


def test_a_sliding_window_limits_the_context_to_where_it_makes_no_difference(tiny, tmp_path):
    path = _edit(tiny, tmp_path / "m.gguf", values={"llama.attention.sliding_window": (U32, 256)})
    assert import_gguf(path, tmp_path).config.context_length == 256


def test_the_tokenizer_shard_holds_the_vocabulary_and_the_template(tiny, tmp_path):
    path = _edit(tiny, tmp_path / "m.gguf", values={"tokenizer.ggml.eot_token_id": (U32, 2)})
    shard = import_gguf(path, tmp_path).shards[0]
    data = decode_tokenizer(shard_path(tmp_path, shard.id).read_bytes())
    reader = gguf.GGUFReader(path)
    assert list(data.tokens) == reader.fields["tokenizer.ggml.tokens"].contents()
    assert list(data.token_types) == reader.fields["tokenizer.ggml.token_type"].contents()
    assert (data.model, data.pre, data.bos_token, data.eos_token, data.eot_token) == ("gpt2", "gpt-2", 1, 2, 2)
    assert (data.add_bos, data.add_eos, data.unknown_token) == (False, False, None)
    assert data.chat_template == reader.fields["tokenizer.chat_template"].contents()


@pytest.mark.parametrize(
    ("model", "pre", "adds", "bos"),
    [("gpt2", "gpt-2", False, None), ("gpt2", "llama-bpe", True, None), ("llama", "default", True, 1)],
)
def test_what_the_tokenizer_keys_leave_out_is_as_llama_cpp_has_it(model, pre, adds, bos, tiny, tmp_path):
    left_out = ["tokenizer.ggml.add_bos_token", "tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id"]
    values = {"tokenizer.ggml.model": (STRING, model), "tokenizer.ggml.pre": (STRING, pre)}
    with open_gguf(_edit(tiny, tmp_path / "m.gguf", values=values, remove=left_out)) as opened:
        data = opened.tokenizer
    assert (data.add_bos, data.bos_token, data.add_space_prefix) == (adds, bos, model == "llama")
    assert (data.eos_token, data.unknown_token) == ((2, 0) if model == "llama" else (None, None))


@pytest.mark.parametrize(
    ("values", "error", "words"),
    [
        ({"general.architecture": (STRING, "mamba")}, UnsupportedModel, "'mamba'.*known: bert, llama"),
        ({"general.type": (STRING, "adapter")}, UnsupportedModel, "adapter"),
        ({"split.count": (U32, 3)}, InvalidModelFile, "m.gguf is one of 3 parts of a model; keep them together"),
        ({"llama.rope.scaling.type": (STRING, "yarn")}, UnsupportedModel, "'yarn'"),
        ({"llama.expert_count": (U32, 8)}, UnsupportedModel, "llama.expert_count"),
        ({"llama.logit_scale": (F32, 0.5)}, UnsupportedModel, "llama.logit_scale"),
        ({"llama.attention.causal": (BOOL, False)}, UnsupportedModel, "not causal"),
        ({"llama.attention.value_length": (U32, 16)}, UnsupportedModel, "different sizes"),
        ({"llama.block_count": (U32, 2)}, UnsupportedModel, "'blk.2.*' has no place"),
        ({"llama.block_count": (U32, 4)}, InvalidModelFile, "lacks 9 of 38 tensors, first 'blk.3.attn_norm.weight'"),
        ({"llama.block_count": (U32, 4_000_000_000)}, InvalidModelFile, "block_count"),
        ({"llama.block_count": (U32, 0)}, InvalidModelFile, "block_count is 0"),
        ({"llama.embedding_length": (U32, 512)}, InvalidModelFile, r"should have shape .*512.*but has .*256"),
        ({"llama.attention.head_count": (U32, 0)}, InvalidModelFile, "0 heads"),
        ({"llama.attention.head_count": (U32, 3)}, InvalidModelFile, "3 heads"),
        ({"llama.attention.head_count_kv": (U32, 3)}, InvalidModelFile, "4 heads cannot share 3"),
        ({"llama.attention.head_count": (STRING, "4")}, InvalidModelFile, "'llama.attention.head_count' .* str, not int"),
        ({"llama.rope.freq_base": (F32, float("nan"))}, InvalidModelFile, "rope_base is nan"),
        ({"llama.rope.freq_base": (F32, -1.0)}, InvalidModelFile, "rope_base is -1.0"),
        ({"llama.rope.dimension_count": (U32, 63)}, InvalidModelFile, "must be even"),
        ({"llama.rope.dimension_count": (U32, 128)}, InvalidModelFile, "not above the first"),
        ({"llama.attention.layer_norm_rms_epsilon": (F32, 0.0)}, InvalidModelFile, "norm_epsilon"),
        ({"llama.context_length": (U32, 0)}, InvalidModelFile, "context_length is 0"),
        ({"tokenizer.ggml.eos_token_id": (U32, 99_999)}, InvalidModelFile, "eos token is 99999"),
    ],
)  # fmt: skip
def test_metadata_that_cannot_be_run_is_refused_by_name(values, error, words, tiny, tmp_path):
    path = _edit(tiny, tmp_path / "m.gguf", values=values)
    with pytest.raises(error, match=words):
        import_gguf(path, tmp_path / "shards")
    assert not [path for path in (tmp_path / "shards").rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    "key", ["llama.block_count", "llama.context_length", "tokenizer.ggml.tokens", "tokenizer.ggml.model"]
)
def test_missing_metadata_is_named(key, tiny, tmp_path):
    with pytest.raises(InvalidModelFile, match=f"'{key}' is missing"):
        import_gguf(_edit(tiny, tmp_path / "m.gguf", remove=[key]), tmp_path)


@pytest.mark.parametrize(
    ("extra", "error", "words"),
    [
        ({"blk.0.attn_q.bias": np.zeros(256, np.float32)}, UnsupportedModel, "'blk.0.attn_q.bias' has no place"),
        ({"blk.1.surprise.weight": np.zeros(32, np.float32)}, UnsupportedModel, "surprise"),
        ({"blk.0.attn_k.weight": np.zeros((96, 256), np.float32)}, InvalidModelFile,
         r"'blk.0.attn_k.weight' should have shape \(128, 256\), but has \(96, 256\)"),
        ({"output_norm.weight": np.zeros(255, np.float32)}, InvalidModelFile, r"\(256,\), but has \(255,\)"),
        ({"blk.0.attn_q.weight": np.zeros((256, 256), np.float64)}, UnsupportedModel, "type F64"),
        ({"rope_freqs.weight": np.ones(31, np.float32)}, InvalidModelFile, r"\(32,\), but has \(31,\)"),
        ({"rope_freqs.weight": np.zeros(32, np.float32)}, InvalidModelFile, "not positive"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_refused_by_name(extra, error, words, tmp_path):
    path = write_tiny_llama(tmp_path / "m.gguf", extra=extra)
    with pytest.raises(error, match=words):
        import_gguf(path, tmp_path / "shards")


def test_a_missing_tensor_is_named(tmp_path):
    path = write_tiny_llama(tmp_path / "m.gguf", drop="blk.1.ffn_up.weight")
    with pytest.raises(InvalidModelFile, match=r"blk\.1\.ffn_up\.weight"):
        import_gguf(path, tmp_path)


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.999])
def test_a_truncated_file_is_called_truncated_and_leaves_nothing(share, tiny, tmp_path):
    raw = tiny.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(raw[: int(len(raw) * share)])
    with pytest.raises(InvalidModelFile, match="truncated"):
        import_gguf(tmp_path / "cut.gguf", tmp_path / "shards")
    assert not [path for path in (tmp_path / "shards").rglob("*") if path.is_file()]


def test_a_file_that_is_not_there_or_is_no_file_is_unavailable(tmp_path):
    with pytest.raises(SourceUnavailable, match="No such file"):
        import_gguf(tmp_path / "no.gguf", tmp_path)
    (tmp_path / "folder.gguf").mkdir()
    with pytest.raises(SourceUnavailable, match="not a regular file"):
        import_gguf(tmp_path / "folder.gguf", tmp_path)


def test_an_empty_file_is_invalid(tmp_path):
    (tmp_path / "empty.gguf").touch()
    with pytest.raises(InvalidModelFile, match="truncated"):
        import_gguf(tmp_path / "empty.gguf", tmp_path / "shards")


def test_too_little_space_refuses_before_anything_is_written(tiny, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(importing.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(FileError, match="has 0 MB free"):
        import_gguf(tiny, tmp_path / "shards")
    assert not [path for path in (tmp_path / "shards").rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("Smollm2 135M 8k Lc100K Mix1 Ep2", "smollm2-135m-8k-lc100k-mix1-ep2"),
        ("Llama-3.1-8B_Instruct", "llama-3.1-8b-instruct"),
        ("../../etc/passwd", "etc-passwd"),
        ("大模型", "model"),
        ("", "model"),
        ("x" * 500, "x" * 80),
    ],
)
def test_names_are_made_of_titles(title, name):
    assert name_from_title(title) == name
