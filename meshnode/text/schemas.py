"""JSON Schemas as an answer's grammar takes them: decoded, without references that never arrive, arguments as objects.

llguidance finds an endless reference only when it has a vocabulary, which is after a streamed answer has begun.
"""

import json
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any
from urllib.parse import unquote

import msgspec

from meshnode.errors import RequestError
from meshnode.text.depth import check_depth

__all__ = ["arguments_grammar", "value_grammar"]

_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def value_grammar(schema: str) -> str:
    """Return the grammar of a value. Raises RequestError."""
    return _written(_decoded(schema, "the schema of the answer"))


def arguments_grammar(schema: str, tool: str) -> str:
    """Return the grammar of a tool's arguments, which are a JSON object whatever else the schema says. Raises RequestError."""
    what = f"the parameters of tool {tool!r}"
    value = _decoded(schema, what)
    kinds = value.get("type", "object")
    if "object" not in (kinds if isinstance(kinds, list) else [kinds]):
        raise RequestError(f"{what} must be of type 'object', not {str(kinds)[:40]!r}", param="tools")
    return _written({**value, "type": "object"})


def _written(schema: Mapping[str, Any]) -> str:
    return "%json " + json.dumps({**schema, "x-guidance": _SPACING}, ensure_ascii=False)


def _decoded(schema: str, what: str) -> dict[str, Any]:
    check_depth(schema, what)
    try:
        value = msgspec.json.decode(schema)
    except msgspec.DecodeError as error:
        raise RequestError(f"{what} is not JSON: {error}") from error
    if isinstance(value, bool):
        value = {} if value else {"not": {}}
    if not isinstance(value, dict):
        raise RequestError(f"{what} is not a JSON schema")
    try:
        TopologicalSorter(
            {id(node): {id(other) for other in _same_place(node, value)} for node in _objects(value)}
        ).prepare()
    except CycleError as error:
        raise RequestError(f"{what} cannot be enforced: a '$ref' leads back to itself and describes nothing") from error
    return value


def _objects(root: object) -> Iterator[dict[str, Any]]:
    """Return every object in a JSON value."""
    left = [root]
    while left:
        node = left.pop()
        if isinstance(node, dict):
            yield node
        left += node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()


def _same_place(schema: Mapping[str, Any], root: object) -> Iterator[dict[str, Any]]:
    """Return the schemas that describe the very value that this one does, not a part of it."""
    reference = schema.get("$ref")
    others = [_at(root, reference)] if isinstance(reference, str) else []
    for key in ("allOf", "anyOf", "oneOf"):
        options = schema.get(key)
        others += options if isinstance(options, list) else []
    return (other for other in others if isinstance(other, dict))


def _at(root: object, reference: str) -> object:
    """Return what a JSON pointer in a URI fragment leads to (RFC 6901, section 6), or None."""
    node = root
    if not reference.startswith("#"):
        return None
    for step in unquote(reference[1:]).split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(node, list) and name.isdecimal() and int(name) < len(node):
            node = node[int(name)]
        else:
            node = node.get(name) if isinstance(node, dict) else None
    return node
