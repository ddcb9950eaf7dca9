"""Reads values out of metadata somebody else wrote, with the types they should have."""

from collections.abc import Mapping
from typing import TypeVar

import attrs

from meshnode.errors import InvalidModelFile

__all__ = ["TypedFields"]

T = TypeVar("T", bool, int, float, str, list[object], dict[str, object])


@attrs.frozen
class TypedFields:
    """Keys and values of GGUF metadata or of a JSON object. A JSON null is as good as absent."""

    values: Mapping[str, object]
    where: str  # for messages, for example "config.json"

    def optional(self, key: str, kind: type[T]) -> T | None:
        """Return the value of `key` or None; an integer will do for a float. Raises InvalidModelFile for another type."""
        value = self.values.get(key)
        if value is None:
            return None
        if kind is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 64:
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise InvalidModelFile(f"{key!r} in {self.where} is of type {type(value).__name__}, not {kind.__name__}")
        return value

    def get(self, key: str, kind: type[T], default: T) -> T:
        """Return the value of `key` or `default`. Raises InvalidModelFile for another type."""
        value = self.optional(key, kind)
        return default if value is None else value

    def need(self, key: str, kind: type[T]) -> T:
        """Return the value of `key`. Raises InvalidModelFile without it."""
        value = self.optional(key, kind)
        if value is None:
            raise InvalidModelFile(f"{key!r} is missing in {self.where}")
        return value
