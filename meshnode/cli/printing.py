"""Values as text for a person: tables, sizes, and nothing that could steer the terminal."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click

__all__ = ["print_json", "print_table", "print_tree", "printable", "size"]

_HARMLESS = frozenset("\n\t")


def printable(text: str) -> str:
    """Return `text` without control characters; a model's words must not move the cursor or set the title."""
    return "".join(c for c in text if c in _HARMLESS or not (ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0))


def size(count: float) -> str:
    """Return a number of bytes as 12.3 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def print_json(value: object) -> None:
    """Print one JSON document."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print left-aligned columns."""
    lines = [list(headings), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    for line in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def print_tree(value: Mapping[str, Any], indent: str = "") -> None:
    """Print nested JSON values, one to a line; lists of objects get a line for each object."""
    for key, item in value.items():
        name = indent + key.replace("_", " ")
        if isinstance(item, Mapping):
            click.echo(f"{name}:")
            print_tree(item, indent + "  ")
        elif isinstance(item, list):
            click.echo(f"{name}: {'none' if not item else len(item)}")
            for entry in item:
                click.echo(f"{indent}  - {_line(entry)}")
        else:
            click.echo(f"{name}: {_line(item)}")


def _line(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(
            f"{key.replace('_', ' ')} {_line(item)}" for key, item in value.items() if item not in (None, "", [])
        )
    if isinstance(value, list):
        return " ".join(_line(item) for item in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.1f}"
    return "none" if value is None else printable(str(value))
