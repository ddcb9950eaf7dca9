"""Options that several commands share, and the settings they lead to."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from meshnode.config.loading import LoadedConfig, load_config
from meshnode.config.paths import DataPaths, default_data_dir
from meshnode.types.blocks import BlockRange

__all__ = ["BLOCKS", "data_dir_option", "json_option", "node_options", "settings", "settings_file"]

F = TypeVar("F", bound=Callable[..., Any])


class _Blocks(click.ParamType[str]):
    """A range of blocks as people write it, `A:B`; it stays what they wrote."""

    name = "blocks"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return `value`, or refuse it as wrong usage."""
        try:
            BlockRange.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return value


BLOCKS = _Blocks()
"""The type of `--blocks`."""


def data_dir_option(function: F) -> F:
    """Add `--data-dir`."""
    return click.option(
        "--data-dir",
        type=click.Path(file_okay=False, path_type=Path),
        help="Folder of the node's files.  [env: MESHNODE_DATA_DIR]",
    )(function)


def json_option(function: F) -> F:
    """Add `--json`, passed on as `as_json`; None when it is not given, so that the settings decide."""
    return click.option(
        "--json", "as_json", is_flag=True, default=None, help="Print JSON for programs.  [env: MESHNODE_JSON]"
    )(function)


def node_options(function: F) -> F:
    """Add what finds a running node and opens it: `--data-dir`, `--port` and `--api-key`."""
    port = click.option(
        "--port",
        type=click.IntRange(1, 65535),
        help="Port of the running node, instead of asking its data folder.  [env: MESHNODE_PORT]",
    )
    key = click.option(
        "--api-key",
        metavar="KEY",
        help="Key of the running node, instead of its data folder's; other users see it here, and not in the variable.  "
        "[env: MESHNODE_API_KEY]",
    )
    return data_dir_option(port(key(function)))


def settings_file(data_dir: Path | None) -> Path:
    """Return the settings file of a folder, whatever is in it."""
    named = data_dir or os.environ.get("MESHNODE_DATA_DIR") or os.environ.get("MESHNODE_NODE_DATA_DIR")
    return DataPaths(Path(named) if named else default_data_dir()).config_file


def settings(
    data_dir: Path | None, port: int | None = None, as_json: bool | None = None, **flags: object
) -> LoadedConfig:
    """Load the configuration as a node in that folder would. Raises ConfigError.

    Further flags are named `section_field`; None means not given.
    """
    given = {name.replace("_", ".", 1): value for name, value in flags.items()}
    common = {"node.data_dir": data_dir, "api.port": port, "cli.json": as_json}
    return load_config(flags=common | given, env=os.environ, file=None)
