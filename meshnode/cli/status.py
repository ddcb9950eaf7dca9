"""`meshnode status`."""

from pathlib import Path

import click

from meshnode.cli.address import locate
from meshnode.cli.options import json_option, node_options, settings
from meshnode.cli.printing import print_json, print_tree

__all__ = ["status"]


@click.command()
@node_options
@json_option
def status(*, data_dir: Path | None, port: int | None, as_json: bool | None) -> None:
    """Show what the running node is doing: its parts, models, workers and troubles.

    \b
    Examples:
      meshnode status
      meshnode status --json | jq .conditions
    """  # noqa: D301 - \b is click's mark for a paragraph kept as it is
    loaded = settings(data_dir, port, as_json)
    address = locate(loaded)
    from meshnode.cli.client import Client  # httpx takes longer to load than it takes to see that no node runs

    with Client(address) as client:
        answer = client.get("/api/admin/status")
    if loaded.config.cli.json:
        print_json(answer)
    else:
        click.echo(f"address: {address.url}")
        print_tree(answer)
