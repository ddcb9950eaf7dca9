"""A stage computes the model, whatever the chunks, batches and borders."""

import itertools
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.kernels import needs_own, use_kernels
from support.reference_model import reference
from support.stages import stage_of, tiny_manifest
from support.tiny_gguf import write_tiny_llama

from meshnode.engine.quantization.ggml import PLAIN, QUANTIZED
from meshnode.engine.stage_model import Rows, StageModel
from meshnode.errors import InvalidModelFile, OutOfMemory
from meshnode.types.manifest import ShardKind


def load(path, folder, *borders, **options):
    manifest = tiny_manifest(path, folder)
    edges = [0, *borders, manifest.config.block_count]
    return [StageModel.load(stage_of(manifest, folder, *pair, **options)) for pair in itertools.pairwise(edges)]


def run(stages, tokens, sizes):
    """Feed tokens in chunks through consecutive stages; return the logits of every position."""
    caches = [stage.open_cache(len(tokens)) for stage in stages]
    pieces, at = [], 0
    for size in sizes:
        rows = torch.tensor(tokens[at : at + size])
        for stage, cache in zip(stages, caches, strict=True):
            rows = stage.forward([Rows(cache, rows, "all")])[0]
        pieces.append(rows)
        at += size
    for cache in caches:
        cache.close()
    return torch.cat(pieces)


def tokens_of(count, seed=0):
    return random.Random(seed).choices(range(3, 259), k=count)


@pytest.mark.parametrize("quantization", [*QUANTIZED, *PLAIN])
def test_logits_agree_with_an_exact_model(tmp_path, quantization):
    path = write_tiny_llama(tmp_path / "m.gguf", quantization=quantization)
    tokens = tokens_of(40)
    exact = reference(path, tokens)
    found = run(load(path, tmp_path / "shards"), tokens, [40])
    assert float((found - exact).std()) < 0.05 * float(exact.std())


@pytest.mark.parametrize(
    "options", [{"tied": False}, {"rope_freqs": True}, {"kv_heads": 4}, {"kv_heads": 1}, {"heads": 8}]
)
def test_variants_of_the_family_agree_too(tmp_path, options):
    path = write_tiny_llama(tmp_path / "m.gguf", quantization="Q8_0", **options)
    tokens = tokens_of(300)
    exact = reference(path, tokens)
    found = run(load(path, tmp_path / "shards"), tokens, [300])
    assert float((found - exact).std()) < 0.05 * float(exact.std())


@pytest.mark.parametrize(
    ("kernels", "quantization"), [("own", "Q4_1"), ("own", "Q8_0"), ("own", "F32"), ("torch", "Q4_1"), ("torch", "F32")]
)
@pytest.mark.parametrize("threads", [1, 2])
def test_chunks_borders_and_batches_change_no_bit(tmp_path, monkeypatch, kernels, quantization, threads):
    use_kernels(monkeypatch, kernels)
    path = write_tiny_llama(tmp_path / "m.gguf", quantization=quantization, blocks=3)
    whole = load(path, tmp_path / "shards")
    split = load(path, tmp_path / "shards", 1, 2)
    tokens, choose = tokens_of(600), random.Random(threads)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        one_by_one = run(whole, tokens, [1] * 600)
        for stages in (whole, split):
            sizes = []
            while sum(sizes) < 600:
                sizes.append(min(600 - sum(sizes), choose.choice([1, 2, 7, 64, 127, 128, 129, 255, 256, 257])))
            assert torch.equal(run(stages, tokens, sizes), one_by_one), sizes
        assert torch.equal(run_together(whole[0], tokens, choose), one_by_one)
    finally:
        torch.set_num_threads(before)


def test_float32_products_change_no_bit_either(tmp_path, monkeypatch):
    use_kernels(monkeypatch, "torch")
    monkeypatch.setattr("meshnode.engine.layers.products._cpu_has_bfloat16", lambda: False)
    path = write_tiny_llama(tmp_path / "m.gguf", quantization="F16", blocks=2)
    stages, tokens = load(path, tmp_path / "shards"), tokens_of(300)
    assert stages[0].plans.products.dtype is torch.float32
    one_by_one = run(stages, tokens, [1] * 300)
    assert torch.equal(run(stages, tokens, [129, 1, 2, 3, 5, 160]), one_by_one)
    assert float((one_by_one - reference(path, tokens)).std()) < 0.02 * float(one_by_one.std())


@needs_own
@pytest.mark.parametrize("quantization", ["Q4_K", "F16"])
def test_both_kinds_of_kernels_compute_the_same_model(tmp_path, monkeypatch, quantization):
    path, tokens = write_tiny_llama(tmp_path / "m.gguf", quantization=quantization), tokens_of(300)
    found = {}
    for kernels in ("own", "torch"):
        use_kernels(monkeypatch, kernels)
        found[kernels] = run(load(path, tmp_path / "shards"), tokens, [300])
    assert float((found["own"] - found["torch"]).std()) < 0.03 * float(found["own"].std())
    assert not torch.equal(found["own"], found["torch"])  # else the same ones ran twice


def run_together(stage, tokens, choose):
    """Run the same text in one batch with two other sessions that go at their own pace; return its logits."""
    texts = [tokens, tokens_of(600, 1), tokens_of(600, 2)]
    caches = [stage.open_cache(600) for _ in texts]
    pieces = []
    while caches[0].length < 600:
        batch = []
        for cache, text in zip(caches, texts, strict=True):
            count = min(600 - cache.length, choose.choice([1, 1, 1, 30, 129]))
            if count:
                batch.append(Rows(cache, torch.tensor(text[cache.length : cache.length + count]), "all"))
        choose.shuffle(batch)
        results = stage.forward(batch)
        pieces += [result for rows, result in zip(batch, results, strict=True) if rows.cache is caches[0]]
    return torch.cat(pieces)


def test_only_the_wanted_logits_are_computed(tmp_path):
    stage = load(write_tiny_llama(tmp_path / "m.gguf"), tmp_path / "shards")[0]
    caches = [stage.open_cache(8) for _ in range(3)]
    wants = ("none", "last", "all")
    rows = [Rows(cache, torch.tensor([5, 6, 7]), want) for cache, want in zip(caches, wants, strict=True)]
    none, last, every = stage.forward(rows)
    assert [len(none), len(last), len(every)] == [0, 1, 3]
    assert torch.equal(last[0], every[-1])
    assert stage.forward([Rows(caches[0], torch.tensor([1]), "none")])[0].shape == (
        0,
        stage.spec.config.vocabulary_size,
    )


def test_truncating_replays_the_same_bits(tmp_path):
    stage = load(write_tiny_llama(tmp_path / "m.gguf"), tmp_path / "shards")[0]
    tokens = tokens_of(300)
    cache = stage.open_cache(400)
    full = stage.forward([Rows(cache, torch.tensor(tokens), "all")])[0]
    stage.forward([Rows(cache, torch.tensor(tokens_of(60, 9)))])
    cache.truncate(270)
    again = stage.forward([Rows(cache, torch.tensor(tokens[270:]), "all")])[0]
    assert torch.equal(again, full[270:])
    with pytest.raises(ValueError, match="truncate"):
        cache.truncate(301)


def test_going_back_over_a_page_border_replays_the_same_bits_row_by_row(tmp_path):
    stage = load(write_tiny_llama(tmp_path / "m.gguf"), tmp_path / "shards")[0]
    tokens = tokens_of(260)
    cache = stage.open_cache(260)
    full = stage.forward([Rows(cache, torch.tensor(tokens), "all")])[0]
    for start in (255, 258, 254):
        cache.truncate(start)
        rows = [stage.forward([Rows(cache, torch.tensor([token]))])[0] for token in tokens[start:]]
        assert torch.equal(torch.cat(rows), full[start:])


def test_memory_is_refused_before_it_runs_out_and_given_back(tmp_path):
    path = write_tiny_llama(tmp_path / "m.gguf")
    page = 2 * 2 * 2 * 256 * 64 * 2  # blocks, keys and values, KV heads, positions, head size, bytes
    stage = load(path, tmp_path / "shards", cache=3 * page)[0]
    assert stage.pool.page_bytes == page
    first = stage.open_cache(257)
    assert (first.capacity, first.reserved_bytes, stage.pool.used_bytes) == (512, 2 * page, 2 * page)
    with pytest.raises(OutOfMemory, match="KV cache needs"):
        stage.open_cache(257)
    assert stage.pool.used_bytes == 2 * page
    with pytest.raises(OutOfMemory, match="reserved 512"):
        stage.forward([Rows(first, torch.zeros(513, dtype=torch.int64))])
    first.close()
    first.close()
    assert (first.reserved_bytes, stage.pool.used_bytes) == (0, 0)
    stage.open_cache(700).close()


def test_a_missing_tensor_is_named(tmp_path):
    manifest = tiny_manifest(write_tiny_llama(tmp_path / "m.gguf"), tmp_path / "shards")
    spec = stage_of(manifest, tmp_path / "shards")
    import attrs

    with pytest.raises(InvalidModelFile, match="output_norm"):
        StageModel.load(attrs.evolve(spec, shards=spec.shards[:-1], paths=spec.paths[:-1]))


def test_a_shard_whose_header_contradicts_its_descriptor_is_not_computed_with(tmp_path):
    """Its hash is right: whoever made the manifest made the shard."""
    spec = stage_of(tiny_manifest(write_tiny_llama(tmp_path / "m.gguf"), tmp_path / "shards"), tmp_path / "shards")
    (path,) = [Path(path) for path, shard in zip(spec.paths, spec.shards, strict=True) if shard.kind is ShardKind.HEAD]
    tensors = load_file(path)
    tensors["output_norm.weight"] = tensors["output_norm.weight"][:8].clone()
    path.chmod(0o600)
    save_file(tensors, path)
    with pytest.raises(InvalidModelFile, match=r"'output_norm.weight' is torch.float32 \[8\], not F32"):
        StageModel.load(spec)


def test_loading_reports_its_progress(tmp_path):
    manifest = tiny_manifest(write_tiny_llama(tmp_path / "m.gguf"), tmp_path / "shards")
    heard = []
    stage = StageModel.load(stage_of(manifest, tmp_path / "shards"), lambda done, total: heard.append((done, total)))
    assert heard == [(1, 2), (2, 2)]
    assert stage.weight_bytes > 0
