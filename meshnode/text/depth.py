"""How deep JSON from whoever asks may be nested: what reads it goes down by recursion, a template's own macros too."""

import re

from meshnode.errors import RequestError

__all__ = ["MAX_DEPTH", "check_depth", "too_deep"]

MAX_DEPTH = 100
_PIECES = re.compile(r'"(?:[^"\\]|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)  # linear, for text that is no JSON too


def check_depth(text: str, what: str, param: str | None = None) -> None:
    """Raise RequestError when a text of JSON is nested deeper than MAX_DEPTH. `what` names it."""
    if text.count("{") + text.count("[") <= MAX_DEPTH:
        return
    depth = 0
    for piece in _PIECES.finditer(text):
        depth += 1 if piece[0] in "[{" else -1 if piece[0] in "]}" else 0
        if depth > MAX_DEPTH:
            raise too_deep(what, param)


def too_deep(what: str, param: str | None = None) -> RequestError:
    """Return the refusal of JSON that is nested too deeply."""
    return RequestError(f"{what} must not be nested deeper than {MAX_DEPTH} levels", param=param)
