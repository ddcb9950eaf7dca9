"""Decodes JSON values that stand one after the other."""

import json

from meshnode.text.tool_calls.base import NotACall

__all__ = ["values_in"]

_decoder = json.JSONDecoder()


def values_in(text: str) -> list[object]:
    """Return the values, those of lists one by one. Raises NotACall where there are none, or something else."""
    found: list[object] = []
    at = 0
    while at < len(text):
        if text[at] in "; \t\r\n":
            at += 1
            continue
        try:
            value, at = _decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise NotACall(f"not JSON: {error}") from error
        found += value if isinstance(value, list) else [value]
    if not found:
        raise NotACall("nothing was called")
    return found
