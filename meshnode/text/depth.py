"""How deep JSON from whoever asks may be nested: what reads it goes down by recursion, a template's own macros too."""

import re

from meshnode.errors import RequestError

__all__ = ["MAX_DEPTH", "check_depth", "is_deeper"]

MAX_DEPTH = 100
"""Levels of a schema, or of the arguments of a call."""

_PIECES = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[{]|[\]}]', re.DOTALL)  # linear, for text that is no JSON too


def is_deeper(raw: bytes, levels: int) -> bool:
    """Whether JSON is nested deeper than that."""
    if raw.count(b"{") + raw.count(b"[") <= levels:
        return False
    depth = 0
    for piece in _PIECES.finditer(raw):
        depth += {b"[": 1, b"{": 1, b"]": -1, b"}": -1}.get(piece[0], 0)
        if depth > levels:
            return True
    return False


def check_depth(text: str, what: str, param: str | None = None) -> None:
    """Raise RequestError when a schema or arguments are nested too deeply. `what` names them."""
    if is_deeper(text.encode(), MAX_DEPTH):
        raise RequestError(f"{what} must not be nested deeper than {MAX_DEPTH} levels", param=param)
