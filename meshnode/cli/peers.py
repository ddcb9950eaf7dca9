"""`meshnode peers`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from meshnode.cli.address import find_api_key, locate
from meshnode.cli.options import json_option, node_options, settings
from meshnode.cli.printing import print_json, print_table

__all__ = ["peer_row", "peers"]


@click.command()
@node_options
@json_option
def peers(*, data_dir: Path | None, port: int | None, api_key: str | None, as_json: bool | None) -> None:
    """List the nodes this one knows: how far away they are, and which blocks they run.

    \b
    Examples:
      meshnode peers
      meshnode peers --json | jq '.peers[] | select(.connected)'
    """  # noqa: D301 - \b is click's mark for a paragraph kept as it is
    loaded = settings(data_dir, port, as_json, api_key=api_key)
    address = locate(loaded)
    from meshnode.cli.client import Client

    client = Client(address, find_api_key(loaded))
    answer = client.get("/api/admin/peers")
    if loaded.config.cli.json:
        print_json(answer)
    elif answer["peers"]:
        print_table(["PEER", "NODE", "STATE", "ROUND TRIP", "BLOCKS", "DRIFT CLASS"], map(peer_row, answer["peers"]))
    else:
        click.echo("no peers; `meshnode invite` on another node prints a code for `meshnode join`")


def peer_row(peer: Mapping[str, Any]) -> tuple[str, ...]:
    """Return one line of the table."""
    stages = peer.get("stages") or ()
    blocks = ", ".join(f"{stage['model']} {stage['blocks']}" for stage in stages) or "none"
    classes = ", ".join(sorted({stage["drift_class"] for stage in stages}))
    state = str(peer.get("state", "")) + (", relayed" if peer.get("relayed") else "")
    trip = peer.get("round_trip_ms")
    return (
        str(peer.get("peer", "")),
        str(peer.get("node", "")),
        state,
        "" if trip is None else f"{trip:.1f} ms",
        blocks,
        classes,
    )
