"""The header parser against the reference package, against truncation, and against hostile bytes."""

import struct

import gguf
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.tiny_gguf import write_tiny_llama

from meshnode.errors import FileError, InvalidModelFile, UnsupportedModel
from meshnode.files.gguf_header import GGUFHeader, NeedMore, parse_header


def _text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def _header(pairs=(), tensors=(), *, version=3, pair_count=None, tensor_count=None) -> bytes:
    """Write a header by hand: `pairs` and `tensors` are the encoded entries."""
    counts = struct.pack("<QQ", len(tensors) if tensor_count is None else tensor_count, pair_count or len(pairs))
    return b"GGUF" + struct.pack("<I", version) + counts + b"".join(pairs) + b"".join(tensors)


def _tensor(name="t", shape=(32,), kind=0, offset=0) -> bytes:
    return _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def _array(key: str, inner: int, count: int, body: bytes) -> bytes:
    return _text(key) + struct.pack("<IIQ", 9, inner, count) + body


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> bytes:
    return write_tiny_llama(tmp_path_factory.mktemp("header") / "tiny.gguf").read_bytes()


def test_agrees_with_the_reference_reader_on_a_real_file(starter_gguf, monkeypatch):
    # It cuts every word of the vocabulary from the file by itself, which takes a memmap four times as long as an array.
    monkeypatch.setattr("gguf.gguf_reader.np.memmap", lambda path, mode: np.fromfile(path, np.uint8))
    raw = starter_gguf.read_bytes()
    header = parse_header(raw, file_size=len(raw))
    assert isinstance(header, GGUFHeader)
    reference = gguf.GGUFReader(starter_gguf)
    expected = {
        tensor.name: (
            tensor.tensor_type.name,
            tuple(reversed(tensor.shape.tolist())),
            tensor.data_offset,
            tensor.n_bytes,
        )
        for tensor in reference.tensors
    }
    assert {t.name: (t.ggml_type, t.shape, t.offset, t.nbytes) for t in header.tensors} == expected
    for key, field in reference.fields.items():
        if not key.startswith("GGUF."):
            assert header.metadata[key] == field.contents(), key
    assert header.data_offset == reference.data_offset


SCALARS = {
    "uint8": 200, "int8": -100, "uint16": 60_000, "int16": -30_000, "uint32": 4_000_000_000, "int32": -2_000_000_000,
    "uint64": 2**63 + 1, "int64": -(2**62), "float32": 0.5, "float64": 0.1, "bool": True, "string": "Grüße ▁",
}  # fmt: skip


@pytest.fixture(scope="module")
def every_type(tmp_path_factory) -> bytes:
    """A file with metadata of every type, written by the reference package."""
    path = tmp_path_factory.mktemp("types") / "all.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for kind, value in SCALARS.items():
        getattr(writer, f"add_{kind}")(f"a.{kind}", value)
    writer.add_array("a.strings", ["", "x", "▁y"])
    writer.add_array("a.floats", [0.5, 1.5])
    writer.add_array("a.bools", [True, False])
    writer.add_tensor("t", np.zeros((2, 3), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def test_reads_every_metadata_type(every_type):
    header = parse_header(every_type)
    assert isinstance(header, GGUFHeader)
    assert {key.removeprefix("a."): value for key, value in header.metadata.items() if key[1] == "."} == {
        **SCALARS, "strings": ["", "x", "▁y"], "floats": [0.5, 1.5], "bools": [True, False],
    }  # fmt: skip
    assert header.tensors[0].shape == (2, 3)


@pytest.mark.parametrize("kind", list(gguf.GGMLQuantizationType), ids=lambda kind: kind.name)
def test_sizes_of_every_ggml_type_are_the_packages(kind):
    values, size = gguf.GGML_QUANT_SIZES[kind]
    header = parse_header(_header(tensors=[_tensor(shape=(values * 3, 2), kind=kind)]))
    assert isinstance(header, GGUFHeader)
    assert (header.tensors[0].ggml_type, header.tensors[0].nbytes) == (kind.name, 6 * size)


def _check_prefixes(raw: bytes, step: int) -> None:
    end = parse_header(raw).data_offset
    shortest = next(
        n for n in range(len(raw[:end].rstrip(b"\0")), end + 1) if isinstance(parse_header(raw[:n]), GGUFHeader)
    )
    for length in range(0, shortest, step):
        answer = parse_header(raw[:length])
        assert isinstance(answer, NeedMore), length
        assert length < answer.at_least <= shortest
        with pytest.raises(InvalidModelFile, match="truncated"):
            parse_header(raw[:length], file_size=length)


def test_every_prefix_of_a_header_asks_for_more_and_with_the_file_size_says_truncated(every_type, tiny):
    _check_prefixes(every_type, 1)
    _check_prefixes(tiny, 17)


def test_growing_to_what_is_asked_for_reaches_the_header(tiny):
    length, rounds = 4, 0
    while isinstance(answer := parse_header(tiny[:length]), NeedMore):
        length, rounds = max(answer.at_least, 2 * length), rounds + 1
    assert rounds < 20
    assert answer == parse_header(tiny)


def test_a_file_cut_inside_its_tensors_is_called_truncated(tiny):
    with pytest.raises(InvalidModelFile, match="truncated: fetch it again"):
        parse_header(tiny[:-1], file_size=len(tiny) - 1)


@given(st.binary(max_size=400))
@example(b"")
@example(b"GG")
def test_arbitrary_bytes_never_raise_anything_else(raw):
    try:
        answer = parse_header(raw)
    except FileError:
        return
    assert isinstance(answer, NeedMore | GGUFHeader)


@settings(max_examples=300)
@given(data=st.data())
def test_a_damaged_header_never_raises_anything_else(tiny, data):
    raw = bytearray(tiny[: parse_header(tiny).data_offset])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, min(len(raw) - 1, 1500)))
        raw[at] = data.draw(st.integers(0, 255))
    try:
        answer = parse_header(bytes(raw), file_size=len(tiny))
    except FileError:
        return
    assert isinstance(answer, NeedMore | GGUFHeader)


@pytest.mark.parametrize(
    ("raw", "error", "words"),
    [
        (b"GGML" + bytes(20), InvalidModelFile, "not a GGUF file"),
        (b"PK\3\4", InvalidModelFile, "not a GGUF file"),
        (b"GGUF" + struct.pack("<I", 1) + bytes(16), UnsupportedModel, "version 1"),
        (b"GGUF" + struct.pack("<I", 4) + bytes(16), UnsupportedModel, "version 4"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(16), UnsupportedModel, "big-endian"),
        (_header(tensor_count=2**63), InvalidModelFile, "tensor count"),
        (_header(pair_count=2**64 - 1), InvalidModelFile, "metadata count"),
        (_header([struct.pack("<Q", 2**60)]), InvalidModelFile, "metadata key"),
        (_header([_text("a") + struct.pack("<IQ", 8, 2**50)]), InvalidModelFile, "'a'"),
        (_header([_text("a") + struct.pack("<I", 77) + bytes(9)]), InvalidModelFile, "unknown type 77"),
        (_header([_array("a", 99, 0, b"")]), InvalidModelFile, "unknown type 99"),
        (_header([_array("a", 4, 2**40, b"")]), InvalidModelFile, "array length"),
        (_header([_text("k") + struct.pack("<IB", 0, 1)] * 2), InvalidModelFile, "appears twice"),
        (_header([struct.pack("<Q", 2) + b"\xff\xfe" + struct.pack("<IB", 0, 1)]), InvalidModelFile, "UTF-8"),
        (_header([_text("general.alignment") + struct.pack("<II", 4, 0)]), InvalidModelFile, "alignment"),
        (_header([_text("general.alignment") + struct.pack("<IQ", 10, 2**62)]), InvalidModelFile, "alignment"),
        (_header(tensors=[_tensor(shape=())]), InvalidModelFile, "0 dimensions"),
        (_header(tensors=[_tensor(shape=(1,) * 5)]), InvalidModelFile, "5 dimensions"),
        (_header(tensors=[_tensor(shape=(0,))]), InvalidModelFile, "shape"),
        (_header(tensors=[_tensor(shape=(31, 2), kind=2)]), InvalidModelFile, "blocks of 32"),
        (_header(tensors=[_tensor(kind=4000)]), UnsupportedModel, "GGML type 4000"),
        (_header(tensors=[_tensor(), _tensor(offset=128)]), InvalidModelFile, "'t' appears twice"),
        (_header(tensors=[_tensor("a"), _tensor("b", offset=96)]), InvalidModelFile, "overlaps"),
        (_header(tensors=[_tensor("a"), _tensor("b")]), InvalidModelFile, "overlaps"),
        (_header(tensors=[_tensor(offset=1)]), InvalidModelFile, "not aligned"),
    ],
)
def test_refuses_by_name(raw, error, words):
    with pytest.raises(error, match=words):
        parse_header(raw + bytes(64))


def test_refuses_tensors_beyond_the_end_of_the_file():
    raw = _header(tensors=[_tensor(offset=2**40)])
    with pytest.raises(InvalidModelFile, match="truncated"):
        parse_header(raw + bytes(256), file_size=len(raw) + 256)


def test_refuses_arrays_nested_deeper_than_two():
    nested = struct.pack("<IQ", 9, 1) * 200 + struct.pack("<IQ", 0, 1) + b"\1"
    with pytest.raises(InvalidModelFile, match="nests arrays"):
        parse_header(_header([_text("deep") + struct.pack("<I", 9) + nested], tensor_count=0))


def test_counts_are_checked_against_the_bytes_before_anything_is_made():
    answer = parse_header(_header([_array("a", 8, 4_000_000, b"")]))
    assert isinstance(answer, NeedMore)
    assert answer.at_least > 32_000_000


def test_arrays_together_are_limited():
    arrays = [_array(f"a{i}", 0, 1 << 20, bytes(1 << 20)) for i in range(9)]
    with pytest.raises(InvalidModelFile, match="array length of 'a8'"):
        parse_header(_header(arrays))
