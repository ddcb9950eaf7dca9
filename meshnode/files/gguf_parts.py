"""GGUF models in several files, as llama-gguf-split writes them: `NAME-00001-of-00003.gguf` and so on.

The first has the metadata, each has the tensors it holds, and each says in `split.no` and `split.count` which of how many it is
(https://github.com/ggml-org/llama.cpp/tree/master/tools/gguf-split).
"""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from meshnode.errors import InvalidModelFile
from meshnode.files.gguf_header import GGUFHeader

__all__ = ["check_parts", "part_paths"]

_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_MAX_PARTS = 1024


def part_paths(path: Path) -> tuple[Path, ...]:
    """Return the files of the model that `path` names, whichever part of it that is."""
    found = _NAME.fullmatch(path.name)
    if found is None or not 1 <= int(found["number"]) <= int(found["count"]) <= _MAX_PARTS:
        return (path,)
    count = int(found["count"])
    return tuple(path.with_name(f"{found['stem']}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1))


def check_parts(path: Path, headers: Sequence[GGUFHeader]) -> None:
    """Raise InvalidModelFile unless these are all parts of one model, in order, and no tensor is in two of them."""
    for number, header in enumerate(headers):
        count, own = header.metadata.get("split.count", 1), header.metadata.get("split.no", 0)
        if count != len(headers):
            raise InvalidModelFile(
                f"{path.name} is one of {count!r:.20} parts of a model; keep them together under the names that "
                "llama-gguf-split gave them, and name the first"
            )
        if own != number:
            raise InvalidModelFile(
                f"part {number + 1} of {path.name} says that it is number {own!r:.20}; rename the parts"
            )
    seen = Counter(tensor.name for header in headers for tensor in header.tensors)
    twice = next((name for name, count in seen.items() if count > 1), None)
    if twice is not None:
        raise InvalidModelFile(f"tensor {twice!r} is in two parts of {path.name}")
    total = headers[0].metadata.get("split.tensors.count", len(seen))
    if total != len(seen):
        raise InvalidModelFile(f"the parts of {path.name} have {len(seen)} of {total!r:.20} tensors")
