"""`meshnode status`."""

from pathlib import Path

import click

from meshnode.cli.options import connect, json_option, node_options
from meshnode.cli.printing import print_json, print_tree

__all__ = ["status"]


@click.command()
@node_options
@json_option
def status(*, data_dir: Path | None, port: int | None, as_json: bool) -> None:
    """Show what the running node is doing: its parts, models, workers and troubles.

    \b
    Examples:
      meshnode status
      meshnode status --json | jq .conditions
    """  # noqa: D301 - \b is click's mark for a paragraph kept as it is
    with connect(data_dir, port) as client:
        answer = client.get("/api/admin/status")
        if as_json:
            print_json(answer)
        else:
            click.echo(f"address: {client.address.url}")
            print_tree(answer)
