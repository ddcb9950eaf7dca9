"""`meshnode token`."""

from pathlib import Path

import click

from meshnode.cli.address import find_api_key
from meshnode.cli.options import data_dir_option, json_option, settings
from meshnode.cli.printing import print_json

__all__ = ["token"]


@click.command()
@data_dir_option
@json_option
def token(*, data_dir: Path | None, as_json: bool | None) -> None:
    """Print the key that clients of the HTTP API must send. Keep it secret.

    \b
    Examples:
      meshnode token
      export OPENAI_BASE_URL=http://127.0.0.1:8800/v1 OPENAI_API_KEY=$(meshnode token)
    """  # noqa: D301 - \b is click's mark for a paragraph kept as it is
    loaded = settings(data_dir, as_json=as_json)
    key = find_api_key(loaded).text
    if loaded.config.cli.json:
        print_json({"token": key})
    else:
        click.echo(key)
