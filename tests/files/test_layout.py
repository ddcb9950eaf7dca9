"""Which tensors a model has, which shards they go to, and who keeps which."""

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.engine.quantization.ggml import PLAIN, QUANTIZED
from meshnode.errors import InvalidModelFile, UnsupportedModel
from meshnode.files.layout import READABLE_TYPES, check_tensors, is_kept, plan_shards
from meshnode.files.tensor_shapes import LlamaShapes
from meshnode.types.blocks import BlockRange
from meshnode.types.manifest import ModelConfig, RopeStyle, ShardKind, TensorDescriptor

CONFIG = ModelConfig("llama", 2, 64, 128, 4, 2, 16, 320, 512, 1e-5, 1e4, 16, RopeStyle.INTERLEAVED)
BIASED = {"llama": LlamaShapes(attention_biases=True)}


def _tensors(*, biases: bool = False) -> dict[str, TensorDescriptor]:
    shapes = {"token_embd.weight": (320, 64), "output.weight": (320, 64), "output_norm.weight": (64,)}
    for block in range(2):
        shapes |= {f"blk.{block}.{name}.weight": (64,) for name in ("attn_norm", "ffn_norm")}
        shapes |= {f"blk.{block}.{name}.weight": (64, 64) for name in ("attn_q", "attn_output")}
        shapes |= {f"blk.{block}.{name}.weight": (32, 64) for name in ("attn_k", "attn_v")}
        shapes |= {f"blk.{block}.{name}.weight": (128, 64) for name in ("ffn_gate", "ffn_up")}
        shapes[f"blk.{block}.ffn_down.weight"] = (64, 128)
        if biases:
            shapes |= {
                f"blk.{block}.attn_q.bias": (64,),
                f"blk.{block}.attn_k.bias": (32,),
                f"blk.{block}.attn_v.bias": (32,),
            }
    return {name: TensorDescriptor(name, "F32", shape, 0) for name, shape in shapes.items()}


def test_the_readable_types_are_those_the_engine_computes_with():
    assert {*PLAIN, *QUANTIZED} == READABLE_TYPES


def test_every_tensor_goes_to_exactly_one_shard():
    placed = [source for plan in plan_shards(CONFIG) for _, source in plan.tensors]
    assert sorted(placed) == sorted(_tensors())


def test_biases_are_part_of_a_block_where_the_architecture_has_them():
    check_tensors(CONFIG, _tensors(biases=True), BIASED)
    block = plan_shards(CONFIG, BIASED)[1]
    assert {"blk.0.attn_q.bias", "blk.0.attn_k.bias", "blk.0.attn_v.bias"} <= {name for name, _ in block.tensors}


def test_biases_are_refused_where_it_has_none_and_missed_where_it_has():
    with pytest.raises(UnsupportedModel, match=r"blk\.0\.attn_q\.bias"):
        check_tensors(CONFIG, _tensors(biases=True))
    with pytest.raises(InvalidModelFile, match=r"lacks 6 of 27 tensors, first 'blk\.0\.attn_q\.bias'"):
        check_tensors(CONFIG, _tensors(), BIASED)


def test_an_architecture_that_is_not_in_the_table_is_named():
    with pytest.raises(UnsupportedModel, match="'gemma' cannot be run; known: bert, llama"):
        check_tensors(attrs.evolve(CONFIG, architecture="gemma"), _tensors())


@pytest.mark.parametrize("kind", ["IQ4_XS", "TQ1_0", "I32", "F64"])
def test_types_the_engine_cannot_compute_with_are_refused_by_name(kind):
    tensors = _tensors()
    tensors["blk.1.ffn_up.weight"] = attrs.evolve(tensors["blk.1.ffn_up.weight"], ggml_type=kind)
    with pytest.raises(UnsupportedModel, match=rf"'blk\.1\.ffn_up\.weight' has GGML type {kind}"):
        check_tensors(CONFIG, tensors)


def test_quantised_norms_are_refused():
    tensors = _tensors()
    tensors["output_norm.weight"] = attrs.evolve(tensors["output_norm.weight"], ggml_type="Q8_0")
    with pytest.raises(UnsupportedModel, match=r"'output_norm\.weight' has GGML type Q8_0"):
        check_tensors(CONFIG, tensors)


@given(st.integers(1, 40), st.data())
def test_what_ranges_that_cover_the_model_keep_is_everything_and_blocks_only_once(count, data):
    cuts = sorted(data.draw(st.sets(st.integers(1, count), max_size=5)) | {count})
    ranges = [BlockRange(start, end) for start, end in zip([0, *cuts], cuts, strict=False)]
    for block in range(count):
        assert sum(is_kept(ShardKind.BLOCK, block, blocks, count) for blocks in ranges) == 1
    for kind in (ShardKind.EMBEDDING, ShardKind.HEAD):
        assert sum(is_kept(kind, None, blocks, count) for blocks in ranges) == 1
    assert all(is_kept(ShardKind.TOKENIZER, None, blocks, count) for blocks in ranges)
    assert is_kept(ShardKind.HEAD, None, None, count)
