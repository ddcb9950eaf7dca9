"""`meshnode status`."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import click

from meshnode.cli.address import find_api_key, locate
from meshnode.cli.options import json_option, node_options, settings
from meshnode.cli.printing import print_json, print_models, print_table, printable
from meshnode.cli.progress import drawn

__all__ = ["status"]


@click.command()
@node_options
@json_option
def status(*, data_dir: Path | None, port: int | None, api_key: str | None, as_json: bool | None) -> None:
    """Show what the running node is doing: its parts, models, workers and troubles.

    \b
    Examples:
      meshnode status
      meshnode status --json | jq .conditions
    """  # noqa: D301 - \b is click's mark for a paragraph kept as it is
    loaded = settings(data_dir, port, as_json, api_key=api_key)
    address = locate(loaded)
    from meshnode.cli.client import Client

    client = Client(address, find_api_key(loaded))
    answer = client.get("/api/admin/status")
    if loaded.config.cli.json:
        print_json(answer)
    else:
        _print(answer, address.url)


def _print(answer: Mapping[str, Any], url: str) -> None:
    words = (str(answer.get("version", "?")), str(answer.get("node", "?")), str(answer.get("pid", "?")))
    version, name, pid = map(printable, words)
    uptime = timedelta(seconds=int(answer.get("uptime") or 0))
    click.echo(f"meshnode {version} on {name}, at {url}, process {pid}, running for {uptime}")
    parts = [
        (*_words(row, "name", "state", "restarts"), str(row.get("last_error") or ""))
        for row in _rows(answer, "subsystems")
    ]
    _section(["SUBSYSTEM", "STATE", "RESTARTS", "LAST ERROR"], parts)
    click.echo()
    if models := _rows(answer, "models"):
        print_models(models)
    else:
        click.echo("no models; `meshnode models add starter` fetches a small one")
    workers = [_words(row, "model", "blocks", "device", "restarts") for row in _rows(answer, "workers")]
    _section(["WORKER FOR", "BLOCKS", "DEVICE", "RESTARTS"], workers)
    acquisitions = [row for row in _rows(answer, "acquisitions") if row.get("phase") != "done"]
    _section(
        ["ACQUIRING", "STATE"],
        [(str(row.get("reference")), str(row.get("error") or drawn(row))) for row in acquisitions],
    )
    troubles = [_words(row, "subsystem", "text") for row in _rows(answer, "conditions")]
    _section(["TROUBLE WITH", "WHAT"], troubles)


def _rows(answer: Mapping[str, Any], name: str) -> Sequence[Mapping[str, Any]]:
    return [row for row in answer.get(name) or () if isinstance(row, Mapping)]


def _words(row: Mapping[str, Any], *names: str) -> tuple[str, ...]:
    return tuple(str(row.get(name, "")) for name in names)


def _section(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if rows:
        click.echo()
        print_table(headings, rows)
