"""How JSON from whoever asks is nested: what reads it goes down by recursion, a template's own macros too."""

import numpy as np

from meshnode.errors import RequestError

__all__ = ["MAX_DEPTH", "check_depth", "nesting"]

MAX_DEPTH = 100
"""Levels of a schema, or of the arguments of a call."""


def nesting(raw: bytes) -> tuple[int, int]:
    """Return how many objects and lists there are in JSON, and how deep they go, without decoding it."""
    letters = np.frombuffer(
        raw.replace(b"\\\\", b"").replace(b'\\"', b""), np.uint8
    )  # each quote left begins or ends a string
    in_string = np.cumsum(letters == ord('"'), dtype=np.uint8) & 1 == 1  # it wraps round, and stays odd or even
    folded = letters | 0x20  # which makes braces of brackets, and of nothing else
    brackets = folded[((folded == ord("{")) | (folded == ord("}"))) & ~in_string]
    steps = np.where(brackets == ord("{"), np.int32(1), np.int32(-1))
    return int(np.count_nonzero(steps == 1)), int(steps.cumsum(dtype=np.int32).max(initial=0))


def check_depth(text: str, what: str, param: str | None = None) -> None:
    """Raise RequestError when a schema or arguments are nested too deeply. `what` names them."""
    if text.count("{") + text.count("[") > MAX_DEPTH and nesting(text.encode())[1] > MAX_DEPTH:
        raise RequestError(f"{what} must not be nested deeper than {MAX_DEPTH} levels", param=param)
