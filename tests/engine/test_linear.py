"""Every kernel multiplies what the weights say, and gives a row the same bits in any company."""

import platform

import pytest
import torch
from support.kernels import OWN_RUN_HERE, needs_own, use_kernels

from meshnode.engine.layers.byte_products import FbgemmProduct, VnniProduct, byte_product
from meshnode.engine.layers.dense_linear import DenseLinear
from meshnode.engine.layers.digit_linear import DigitLinear
from meshnode.engine.layers.int4_linear import Int4Linear
from meshnode.engine.layers.int8_linear import Int8Linear
from meshnode.engine.layers.linear import SideBySide, build_linear
from meshnode.engine.layers.matrix import RawMatrix

CPU = torch.device("cpu")


def packed_for(kernel):
    return lambda matrices: Int8Linear.pack(matrices, kernel)


KERNELS = {
    "int4": (Int4Linear.pack, "Q4_1"),
    "int4 of eight bits": (Int4Linear.pack, "Q8_0"),
    **({"our own": (DigitLinear.pack, "Q4_1"), "our own, 8 bits": (DigitLinear.pack, "Q8_0")} if OWN_RUN_HERE else {}),
    # oneDNN's sums saturate on other processors, so it is not chosen there
    **({"int8 of oneDNN": (packed_for(VnniProduct), "Q8_0")} if torch.cpu._is_vnni_supported() else {}),
    **({"int8 of FBGEMM": (packed_for(FbgemmProduct), "Q8_0")} if platform.machine() == "x86_64" else {}),
    "dense": (lambda matrices: DenseLinear.pack(matrices, CPU), "F32"),
}


def matrix(kind, rows=96, columns=64, seed=0):
    import gguf

    values = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * torch.linspace(0.1, 3, columns)
    if kind in ("F32", "F16"):
        return RawMatrix(kind, values, columns)
    raw = gguf.quants.quantize(values.numpy(), gguf.GGMLQuantizationType[kind])
    return RawMatrix(kind, torch.from_numpy(raw), columns)


def inputs(rows, columns=64):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(1)).bfloat16()


@pytest.mark.parametrize("name", KERNELS)
def test_products_are_those_of_the_exact_weights(name):
    pack, kind = KERNELS[name]
    source = matrix(kind)
    linear, rows = pack((source,)), inputs(9)
    exact = rows.double() @ source.values(0, source.rows).double().t()
    scale = float(exact.abs().mean())
    assert float((linear.logits(rows).double() - exact).abs().max()) < 0.05 * scale
    assert float((linear(rows).double() - exact).abs().max()) < 0.06 * scale
    assert linear(rows).dtype == torch.bfloat16
    assert linear.logits(rows).dtype == torch.float32
    assert linear.nbytes > 0


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", KERNELS)
def test_a_row_has_the_same_bits_in_any_company(name, threads):
    pack, kind = KERNELS[name]
    linear, rows = pack((matrix(kind, 192, 256),)), inputs(300, 256)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        alone = torch.cat([linear.logits(row[None]) for row in rows])
        for size in (2, 3, 8, 31, 64, 100, 300):
            together = torch.cat([linear.logits(piece) for piece in rows.split(size)])
            assert torch.equal(together, alone), size
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("kernels", "kind"), [("torch", Int4Linear), pytest.param("own", DigitLinear, marks=needs_own)]
)
def test_stacked_matrices_give_their_outputs_side_by_side(monkeypatch, kernels, kind):
    use_kernels(monkeypatch, kernels)
    first, second = matrix("Q4_1"), matrix("Q4_1", 32, seed=5)
    both = build_linear([first, second], device=CPU)
    assert isinstance(both, kind)
    rows = inputs(4)
    parts = torch.cat([build_linear([part], device=CPU)(rows) for part in (first, second)], dim=1)
    assert torch.equal(both(rows), parts)


def test_matrices_of_different_kinds_keep_their_kernels():
    parts = [matrix("Q4_1"), matrix("Q8_0"), matrix("F32", 10)]
    joined = build_linear(parts, device=CPU)
    assert isinstance(joined, SideBySide)
    assert len(joined.parts) == 3
    rows = inputs(4)
    for method in ("__call__", "logits"):
        expected = torch.cat([getattr(build_linear([part], device=CPU), method)(rows) for part in parts], dim=1)
        assert torch.equal(getattr(joined, method)(rows), expected)
    assert joined.nbytes == sum(part.nbytes for part in joined.parts)


def test_rows_can_be_reordered_while_packing():
    source = matrix("Q4_1", 32)
    order = torch.arange(31, -1, -1)
    reordered = RawMatrix(source.ggml_type, source.data, source.columns, order)
    rows = inputs(3)
    assert torch.equal(build_linear([reordered], device=CPU)(rows), build_linear([source], device=CPU)(rows)[:, order])


def test_without_an_exact_kernel_eight_bits_become_two_halves(monkeypatch):
    use_kernels(monkeypatch, "torch")
    monkeypatch.setattr("meshnode.engine.layers.linear.byte_product", lambda: None)
    linear = build_linear([matrix("Q8_0")], device=CPU)
    assert isinstance(linear, Int4Linear)
    assert linear.halves == 2


def test_without_vnni_digits_have_seven_bits(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    assert byte_product() in (FbgemmProduct, None)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="FBGEMM is for x86-64")
def test_no_digits_and_no_weights_saturate_fbgemm():
    codes = torch.tensor([[127], [-127]], dtype=torch.int8).expand(2, 512).contiguous()
    numbers = torch.tensor([[(1 << 14) - 1], [0]], dtype=torch.int32).expand(2, 512).contiguous()
    for digits in FbgemmProduct.pack(codes, torch.ones(2))(numbers):
        assert digits.tolist() == [[63 * 127 * 512, -63 * 127 * 512], [-64 * 127 * 512, 64 * 127 * 512]]
