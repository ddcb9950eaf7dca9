"""What is wrong with a value, as Anthropic's servers put it: the field first, with dots, `messages.0.content.1.text: ...`."""

import re

from meshnode.api.bodies import parts_of
from meshnode.errors import RequestError

__all__ = ["wrong_at", "wrong_value"]

_INDEX = re.compile(r"\[(\d+|\.\.\.)\]")
_VALUE = re.compile(r"^Invalid (?:enum )?value (.+)$")
_VALUES = {
    "tool_choice.type": "auto, any, tool or none",
    "thinking.type": "enabled, disabled or adaptive",
    "output_config.format.type": "json_schema",
    "output_format.type": "json_schema",
    "service_tier": "auto or standard_only",
    "speed": "standard",
}


def wrong_at(where: str, what: str) -> RequestError:
    """Return a refusal that begins with the field."""
    return RequestError(f"{where}: {what}", param=where)


def wrong_value(text: str, inside: str = "") -> RequestError:
    """Return the refusal of a value that msgspec finds wrong, in the part of a body that is called `inside`."""
    message, path = parts_of(text)
    field = ".".join(part for part in (inside, _INDEX.sub(r".\1", path).lstrip(".")) if part)
    found = _VALUE.match(message)
    if found is None:
        said = message if message.startswith("is ") else message[:1].lower() + message[1:].replace("`", "")
        return wrong_at(field, said) if field else RequestError(said)
    owner, _, last = field.rpartition(".")
    if last == "type" and owner.rpartition(".")[2].isdecimal():
        return _block(owner, found[1])
    if field.endswith(".source.type"):
        return wrong_at(field, f"documents from {found[1]} cannot be read here; those from 'text' and 'content' can")
    known = f"; it is {_VALUES[field]}" if field in _VALUES else ""
    return wrong_at(field, f"{found[1]} is not one of its values{known}")


def _block(where: str, kind: str) -> RequestError:
    """Refuse a content block by its type."""
    if kind == "'image'":
        return wrong_at(where, "the model takes text only; image blocks are not supported")
    return wrong_at(f"{where}.type", f"blocks of type {kind} are not supported here")
