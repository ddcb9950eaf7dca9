"""Values as text for a person: tables, sizes, and nothing that could steer the terminal."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click

__all__ = ["print_json", "print_models", "print_table", "print_wishes", "printable", "size"]

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


def print_models(models: Iterable[Mapping[str, Any]]) -> None:
    """Print models, as the admin API and the catalog list them."""
    headings = ["NAME", "ID", "QUANTIZATION", "CONTEXT", "HERE", "COPIES", "ROUTES", "STATE"]
    print_table(headings, [_model(entry) for entry in models])


def _model(entry: Mapping[str, Any]) -> tuple[str, ...]:
    state = "loaded" if entry.get("loaded") else str(entry.get("detail") or "not loaded")
    plain = (str(entry.get(name, "")) for name in ("name", "id", "quantization", "context_length"))
    name, identifier, quantization, context = plain
    here = f"{entry['shards_held']}/{entry['shards']}" if entry.get("shards") else "-"
    copies, routes = (str(entry.get(field, "-")) for field in ("copies", "routes"))
    return name, identifier[:12], quantization, context, here, copies, routes, state


def print_wishes(wishes: Iterable[Mapping[str, Any]]) -> None:
    """Print the wishlist."""
    print_table(["NAME", "STATUS", "COPIES", "WANTED", "HERE", "WHY"], [_wish(wish) for wish in wishes])


def _wish(wish: Mapping[str, Any]) -> tuple[str, ...]:
    here = f"{wish.get('held_percent', 0)} %"
    why = "; ".join(map(str, wish.get("reasons") or ()))
    return str(wish.get("name")), str(wish.get("status")), str(wish.get("copies")), str(wish.get("target")), here, why
