"""Turning what people write, in TOML, in a variable or behind a flag, into the type a setting has."""

import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path

__all__ = ["as_type"]

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})


def as_type(wanted: object, value: object) -> object:
    """Return `value` as the type `wanted`. Raises ValueError saying what was expected.

    TOML's types count as they are; a string is read as the type. msgspec's lax mode would do most of this, but takes
    1 for true and true for 1, and knows neither lists nor tables inside a string.
    """
    if isinstance(wanted, types.UnionType):  # an optional setting
        if value is None:
            return None
        (wanted,) = (kind for kind in typing.get_args(wanted) if kind is not types.NoneType)
    convert, expected = _CONVERSIONS[wanted]
    try:
        return convert(value)
    except (ValueError, TypeError, RuntimeError) as error:  # RuntimeError: ~user in a path, and no such user
        raise ValueError(f"must be {expected}, not {value!r}") from error


def _boolean(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in _TRUE | _FALSE:
        return value.lower() in _TRUE
    raise TypeError


def _whole_number(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError
    return int(value)


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError
    return float(value)


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    value.encode()  # refuses what came from a variable or an argument that is not UTF-8
    return value


def _path(value: object) -> Path:
    if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
        raise TypeError
    return Path(value).expanduser().absolute()


def _strings(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return tuple(value)
    raise TypeError


def _table(value: object) -> dict[str, str]:
    if isinstance(value, str) and value.lstrip().startswith("{"):  # as it stands in the file
        try:
            return _table(tomllib.loads(f"value = {value}")["value"])
        except tomllib.TOMLDecodeError as error:
            raise TypeError from error
    if isinstance(value, str):
        pairs = [part.partition("=") for part in value.split(",") if part.strip()]
        if all(equals and name.strip() and target.strip() for name, equals, target in pairs):
            return {name.strip(): target.strip() for name, _, target in pairs}
    elif isinstance(value, Mapping) and all(isinstance(item, str) for item in value.values()):
        return dict(value)
    raise TypeError


_CONVERSIONS: typing.Final[Mapping[object, tuple[typing.Callable[[object], object], str]]] = types.MappingProxyType(
    {
        bool: (_boolean, "true or false"),
        int: (_whole_number, "a whole number"),
        float: (_number, "a number"),
        str: (_string, "UTF-8 text"),
        Path: (_path, "a path"),
        tuple[str, ...]: (_strings, "a list of strings"),
        dict[str, str]: (_table, "a table of strings (name=value,name=value outside the file)"),
    }
)
