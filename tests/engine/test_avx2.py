"""Our own kernels compute what they say, at the ends of their ranges too. That rows keep their bits is in `test_linear` and `test_stage_model`."""

import pytest
import torch
from support.kernels import needs_own, use_kernels

from meshnode.engine.kv_cache import PagePool, SessionCache
from meshnode.engine.layers.digit_linear import DigitLinear
from meshnode.engine.layers.direct_attention import DirectAttention
from meshnode.engine.layers.matrix import RawMatrix
from meshnode.engine.layers.mlp import GatedMLP
from meshnode.engine.layers.norm import RMSNorm

pytestmark = needs_own
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own(monkeypatch):
    use_kernels(monkeypatch, "own")


def of_codes(codes):
    """A Q4_1 matrix of scale 1 and minimum 0 with these codes, uint8 [rows, columns]."""
    blocks = codes.view(len(codes), -1, 32)
    affine = torch.tensor([1.0, 0.0]).half().view(torch.uint8).expand(*blocks.shape[:2], 4)
    raw = torch.cat([affine, blocks[..., :16] | blocks[..., 16:] << 4], -1)
    return RawMatrix("Q4_1", raw.reshape(len(codes), -1).contiguous(), codes.shape[1])


def of_bytes(codes):
    """A Q8_0 matrix of scale 1 of int8 codes."""
    scale = torch.tensor([1.0]).half().view(torch.uint8).expand(len(codes), codes.shape[1] // 32, 2)
    raw = torch.cat([scale, codes.view(torch.uint8).view(len(codes), -1, 32)], -1)
    return RawMatrix("Q8_0", raw.reshape(len(codes), -1).contiguous(), codes.shape[1])


@pytest.mark.parametrize("code", [127, -128])
@pytest.mark.parametrize("sign", [1, -1])
def test_no_byte_and_no_activation_saturates(code, sign):
    linear = DigitLinear.pack((of_bytes(torch.full((16, 64), code, dtype=torch.int8)),))
    rows = torch.full((3, 64), sign * 3.0).bfloat16()
    assert linear.logits(rows).tolist() == [[pytest.approx(sign * 3 * code * 64, rel=1e-5)] * 16] * 3


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_codes_and_activations_do_not_saturate(sign):
    linear = DigitLinear.pack((of_codes(torch.full((16, 64), 15, dtype=torch.uint8)),))
    rows = torch.full((3, 64), sign * 3.0).bfloat16()
    assert linear.logits(rows).tolist() == [[pytest.approx(sign * 3 * 15 * 64, rel=1e-6)] * 16] * 3


def test_products_are_exact_to_fourteen_bits():
    codes = torch.randint(0, 16, (32, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    rows = torch.randn(5, 96, generator=torch.Generator().manual_seed(1)).bfloat16()
    exact = rows.double() @ codes.double().t()
    found = DigitLinear.pack((of_codes(codes),)).logits(rows)
    bound = 0.5 / 16256 * rows.double().abs().amax() * codes.double().sum(1)  # half a step for each of the activations
    assert ((found - exact).abs() <= bound + 1e-4).all()


def test_groups_of_very_different_size_keep_their_digits():
    rows = torch.cat([torch.full((1, 32), 1e4), torch.full((1, 32), 1e-4)], 1).bfloat16()
    codes = torch.zeros(16, 64, dtype=torch.uint8)
    codes[:, 32:] = 1
    found = DigitLinear.pack((of_codes(codes),)).logits(rows)
    assert found[0, 0].item() == pytest.approx(rows[0, 32:].double().sum().item(), rel=1e-4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_not_hidden(bad):
    rows = torch.randn(2, 64).bfloat16()
    rows[1, 40] = bad
    found = DigitLinear.pack((of_codes(torch.ones(16, 64, dtype=torch.uint8)),))(rows)
    assert found[0].isfinite().all()
    assert found[1].isnan().all()


@pytest.mark.parametrize("value", [0.0, 1e-38, 1e-31])
def test_rows_of_nothing_give_nothing(value):
    found = DigitLinear.pack((of_codes(torch.full((16, 32), 15, dtype=torch.uint8)),)).logits(
        torch.full((2, 32), value).bfloat16()
    )
    assert found.abs().max() <= 1e-28


def test_outputs_are_rounded_to_the_nearest_even():
    draw, rows = torch.Generator().manual_seed(2), torch.randn(40, 64).bfloat16()
    four, eight = torch.randint(0, 16, (64, 64), generator=draw), torch.randint(-128, 128, (64, 64), generator=draw)
    for matrix in (of_codes(four.to(torch.uint8)), of_bytes(eight.to(torch.int8))):
        linear = DigitLinear.pack((matrix,))
        assert torch.equal(linear(rows), linear.logits(rows).bfloat16())


@pytest.mark.parametrize("n", [1, 3, 200])
def test_a_norm_is_that_of_torch(n):
    rows, weight = torch.randn(n, 576).bfloat16() * 30, torch.rand(576) + 0.5
    exact = torch.nn.functional.rms_norm(rows.double(), (576,), weight.double(), 1e-5)
    assert torch.allclose(RMSNorm.from_weight(weight, 1e-5, CPU)(rows).double(), exact, rtol=2**-8)


def test_the_gate_is_that_of_torch_at_both_ends():
    gate = torch.cat(
        [torch.linspace(-200, 200, 4001), torch.tensor([0.0, -0.0, 1e-30, float("nan"), 3e38, -3e38, 1.0])]
    )
    up = torch.rand(len(gate))
    rows = torch.stack([gate, up]).bfloat16()
    exact = torch.nn.functional.silu(rows[0].double()) * rows[1]
    found = GatedMLP(lambda _: rows.flatten()[None], lambda gated: gated)(rows)[0]
    assert torch.allclose(found.double(), exact, rtol=2**-8, atol=1e-35, equal_nan=True)


@pytest.mark.parametrize(("query_heads", "kv_heads", "size"), [(9, 3, 64), (4, 1, 40), (2, 2, 128), (64, 1, 16)])
def test_attention_is_that_of_torch(query_heads, kv_heads, size):
    pool = PagePool(2, kv_heads, size, 8 << 20, CPU)
    lengths, spans = (300, 1, 40), []
    draw = torch.Generator().manual_seed(3)
    caches = [SessionCache.open(pool, 512) for _ in lengths]
    whole = [torch.randn(n, query_heads + 2 * kv_heads, size, generator=draw).bfloat16() for n in lengths]
    turn = [
        torch.polar(torch.full((n, 1, size // 2), 0.7), torch.rand(n, 1, size // 2, generator=draw)) for n in lengths
    ]
    for first, last in ((0, 37), (37, 38), (38, 300)):  # of each session, what there is of it
        step = [(cache, min(last, n) - min(first, n)) for cache, n in zip(caches, lengths, strict=True)]
        rows = [slice(min(first, n), min(last, n)) for n in lengths]
        for cache, count in step:
            cache.require(count)
        wanted = [entry for entry in step if entry[1]]
        fused = torch.cat([each[span] for each, span in zip(whole, rows, strict=True)]).flatten(1)
        turns = torch.cat([each[span] for each, span in zip(turn, rows, strict=True)])
        attention = DirectAttention.begin(turns, wanted, pool, query_heads)
        spans.append((rows, attention(fused, 1).view(-1, query_heads, size).split([count for _, count in step])))
        for cache, count in step:
            cache.length += count
    for index, (rows, turns) in enumerate(zip(whole, turn, strict=True)):
        found = torch.cat([pieces[index] for _, pieces in spans])
        heads = torch.view_as_real(torch.view_as_complex(rows.float().unflatten(-1, (-1, 2))) * turns).flatten(-2)
        queries, keys = heads[:, :query_heads], heads[:, query_heads : query_heads + kv_heads]
        exact = torch.nn.functional.scaled_dot_product_attention(
            queries.transpose(0, 1),
            keys.bfloat16().float().transpose(0, 1),
            rows[:, query_heads + kv_heads :].float().transpose(0, 1),
            is_causal=True,
            scale=1.0,
            enable_gqa=True,
        ).transpose(0, 1)
        assert torch.allclose(found.float(), exact, rtol=2**-7, atol=2**-8)


@pytest.mark.parametrize("rows", [torch.zeros(2, 96).bfloat16(), torch.zeros(2, 64), torch.zeros(64).bfloat16()])
def test_what_a_kernel_would_read_past_is_refused(rows):
    linear = DigitLinear.pack((of_codes(torch.zeros(16, 64, dtype=torch.uint8)),))
    with pytest.raises(ValueError, match="rows of 64"):
        linear(rows)
    if rows.dim() == 2:
        with pytest.raises(ValueError, match="rows of 64"):
            RMSNorm.from_weight(torch.ones(64), 1e-5, CPU)(rows)


def test_attention_takes_a_rotation_and_a_projection_for_every_row():
    pool = PagePool(1, 1, 16, 1 << 20, CPU)
    cache = SessionCache.open(pool, 256)
    cache.require(3)
    turns = torch.ones(3, 1, 8, dtype=torch.complex64)
    with pytest.raises(ValueError, match="2 rotations for 3 rows"):
        DirectAttention.begin(turns[:2], [(cache, 3)], pool, 2)
    attention = DirectAttention.begin(turns, [(cache, 3)], pool, 2)
    for fused, block in ((torch.zeros(2, 64), 0), (torch.zeros(3, 48), 0), (torch.zeros(3, 64), 1)):
        with pytest.raises(ValueError, match="rows"):
            attention(fused.bfloat16(), block)


def test_a_gate_reads_rows_that_lie_apart():
    rows = torch.randn(6, 64).bfloat16()
    mlp = GatedMLP(lambda each: each, lambda gated: gated)
    assert torch.equal(mlp(rows[::2]), mlp(rows[::2].contiguous()))
