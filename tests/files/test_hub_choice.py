"""Which files of a repository a reference means."""

import pytest

from meshnode.errors import InvalidModelFile, RequestError, SourceUnavailable
from meshnode.files.hub_choice import HubFile, choose_files
from meshnode.files.hub_reference import HubReference

GGUF = [
    "README.md",
    "Foo-7B-Q8_0.gguf",
    "Foo-7B-Q4_K_M.gguf",
    "Foo-7B-Q4_K_S.gguf",
    "mmproj-Foo-7B-f16.gguf",
    "BF16/Foo-7B-BF16-00001-of-00002.gguf",
    "BF16/Foo-7B-BF16-00002-of-00002.gguf",
]
CHECKPOINT = [
    "config.json",
    "tokenizer.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
    "original/consolidated.00.pth",
    "onnx/model.onnx",
]


def chosen(paths, pick=None):
    return [file.path for file in choose_files([HubFile(path, 1, path) for path in paths], pick)]


@pytest.mark.parametrize(
    ("pick", "path"),
    [
        (None, "Foo-7B-Q4_K_M.gguf"),
        ("q8_0", "Foo-7B-Q8_0.gguf"),
        ("Q4_K_S", "Foo-7B-Q4_K_S.gguf"),
        ("Foo-7B-Q8_0.gguf", "Foo-7B-Q8_0.gguf"),
    ],
)
def test_a_file_is_picked_by_quantisation_or_name(pick, path):
    assert chosen(GGUF, pick) == [path]


@pytest.mark.parametrize(
    "pick", ["BF16", "bf16", "BF16/Foo-7B-BF16-00001-of-00002.gguf", "Foo-7B-BF16-00002-of-00002.gguf"]
)
def test_a_split_model_is_all_of_its_parts(pick):
    assert chosen(GGUF, pick) == GGUF[5:]


def test_without_a_wish_the_nearest_to_four_bits_is_taken():
    assert chosen(["a-Q8_0.gguf", "a-Q5_K_M.gguf"]) == ["a-Q5_K_M.gguf"]
    assert chosen(["strange.gguf"]) == ["strange.gguf"]


def test_a_checkpoint_is_the_files_that_are_read_of_it():
    assert chosen(CHECKPOINT) == CHECKPOINT[:5]
    assert chosen([*CHECKPOINT, *GGUF], "safetensors") == CHECKPOINT[:5]


@pytest.mark.parametrize(
    ("paths", "pick", "message"),
    [
        (GGUF, "Q2_K", "has no 'Q2_K'; it has: BF16/Foo.*Foo-7B-Q4_K_M"),
        (["a/x-Q4_0.gguf", "b/x-Q4_0.gguf"], "Q4_0", "could be a/x-Q4_0.gguf, b/x-Q4_0.gguf; name the file"),
        (["a.gguf", "b.gguf"], None, "say which model"),
        (["README.md"], None, "neither a GGUF file nor a safetensors"),
        (GGUF, "safetensors", "no safetensors checkpoint"),
    ],
)
def test_what_cannot_be_told_is_said(paths, pick, message):
    with pytest.raises(SourceUnavailable, match=message):
        chosen(paths, pick)


def test_a_split_model_that_lacks_a_part_is_refused():
    with pytest.raises(InvalidModelFile, match="has 2 parts"):
        chosen(GGUF[:-1], "BF16")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hf:a/b", HubReference("a/b")),
        ("hf:a/b:Q4_K_M", HubReference("a/b", "Q4_K_M")),
        ("hf:a/b:dir/x-Q4.gguf@refs/pr/1", HubReference("a/b", "dir/x-Q4.gguf", "refs/pr/1")),
        ("hf:a-1/b.c_d@v1.0", HubReference("a-1/b.c_d", None, "v1.0")),
    ],
)
def test_a_reference_is_read_and_written(text, expected):
    assert HubReference.parse(text) == expected
    assert str(expected) == text


@pytest.mark.parametrize(
    "text", ["hf:", "hf:a", "hf:a/b/c", "hf:../x", "hf:a/..", "hf:a/b:", "hf:a/b:../../x", "hf:a/b@", "hf:a/b:x\0"]
)
def test_a_malformed_reference_is_refused(text):
    with pytest.raises(RequestError, match="not a hub reference"):
        HubReference.parse(text)
