"""SentencePiece's table of characters: what each is replaced by before a text is cut, a trie and the texts that it points to.

The library that applies it trusts it, and panics where it points outside itself; a model's file is a stranger's, so it is
checked first.
"""

from collections.abc import Callable

import numpy as np
from tokenizers import normalizers

from meshnode.errors import InvalidModelFile

__all__ = ["read_charsmap"]

_BLOCK = 256  # units: a node's children stand in one block, each at the place of its byte
_LEAF, _IS_VALUE = 1 << 8, 1 << 31


def read_charsmap(raw: bytes) -> Callable[[str], str]:
    """Return what applies the table. Raises InvalidModelFile for one that points outside itself."""
    size = int.from_bytes(raw[:4], "little")
    if len(raw) < 4 or size == 0 or size % (4 * _BLOCK) or size > len(raw) - 4:
        raise InvalidModelFile("the vocabulary's precompiled_charsmap is cut off")
    units = np.frombuffer(raw, "<u4", size // 4, offset=4)
    values = units[units >= _IS_VALUE] & (_IS_VALUE - 1)
    texts = np.frombuffer(raw, np.uint8, offset=4 + size)
    nodes = np.flatnonzero(units < _IS_VALUE)
    inner = units[nodes]
    children = nodes ^ ((inner >> 10) << ((inner & (1 << 9)) >> 6))
    leaves = children[(inner & _LEAF) != 0]
    if (
        np.any(children >= len(units))
        or np.any(units[leaves] < _IS_VALUE)
        or np.any(values >= len(texts))
        or np.any(texts[values] & 0xC0 == 0x80)  # the middle of a character
    ):
        raise InvalidModelFile("the vocabulary's precompiled_charsmap points outside itself")
    try:
        return normalizers.Precompiled(raw).normalize_str
    except Exception as error:  # the library has no class of its own for it
        raise InvalidModelFile(f"the vocabulary's precompiled_charsmap cannot be read: {error}") from error
