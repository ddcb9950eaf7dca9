"""The canonical bytes of a value: what is hashed where two nodes must agree.

MessagePack in its shortest form. A value class becomes a map from field name to value with the names in ascending order, an
enumeration its value, a sequence an array, a float 64 bits. A field that has its default value is left out, so that a field
added later, with a default that means «as before», changes no id of what was there before. Defaults, therefore, never change.
"""

import enum

import attrs
import msgspec

__all__ = ["canonical_bytes"]


def canonical_bytes(value: object) -> bytes:
    """Return the canonical bytes of attrs values, enumerations, sequences, maps, strings, numbers and None."""
    return msgspec.msgpack.encode(_plain(value), order="deterministic")


def _plain(value: object) -> object:
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    kind = type(value)
    if attrs.has(kind):
        return {
            field.name: _plain(getattr(value, field.name))
            for field in attrs.fields(kind)
            if getattr(value, field.name) != field.default
        }
    return value
