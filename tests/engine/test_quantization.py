"""Every GGML type decodes to what the reference package says."""

import gguf
import numpy as np
import pytest
import torch

from meshnode.engine.quantization.ggml import PLAIN, QUANTIZED, decode_rows, dequantize_rows
from meshnode.errors import UnsupportedModel


def random_rows(name, rows=6, blocks=3):
    """Random bytes: every code and scale pattern, with those removed whose float16 scale is not finite."""
    source = np.random.default_rng(3)
    size = QUANTIZED[name].nbytes
    raw = source.integers(0, 256, (rows * 40, blocks * size), dtype=np.uint8)
    with np.errstate(invalid="ignore", over="ignore"):
        values = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[name])
    finite = np.isfinite(values).all(axis=1)
    return raw[finite][:rows], values[finite][:rows]


@pytest.mark.parametrize("name", QUANTIZED)
def test_sizes_are_those_of_the_reference(name):
    block = QUANTIZED[name]
    assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]] == (block.values, block.nbytes)


@pytest.mark.parametrize("name", QUANTIZED)
def test_values_are_those_of_the_reference(name):
    raw, expected = random_rows(name)
    assert len(raw) == 6
    found = dequantize_rows(torch.from_numpy(raw), name).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["Q2_K", "Q3_K", "Q6_K"])
def test_widening_costs_less_than_half_an_eight_bit_step(name):
    raw, _ = random_rows(name)
    groups = decode_rows(torch.from_numpy(raw), name)
    exact, wide = groups.dequantize(), groups.widened()
    assert (wide.width, wide.bits) == (32, 8)
    step = wide.scale.repeat_interleave(32, 1)
    assert bool(((wide.dequantize() - exact).abs() <= 0.51 * step + 1e-6).all())


def test_plain_types_pass_through():
    for dtype in PLAIN.values():
        values = torch.randn(3, 8).to(dtype)
        name = next(name for name, kind in PLAIN.items() if kind == dtype)
        assert torch.equal(dequantize_rows(values, name), values.float())


def test_an_unknown_type_is_refused_by_name():
    with pytest.raises(UnsupportedModel, match="IQ2_XS"):
        decode_rows(torch.zeros(1, 74, dtype=torch.uint8), "IQ2_XS")
