"""Options that several commands share, and the settings they lead to."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from meshnode.cli.client import Client, locate
from meshnode.config.loading import LoadedConfig, load_config

__all__ = ["connect", "data_dir_option", "json_option", "node_options", "settings"]

F = TypeVar("F", bound=Callable[..., Any])


def data_dir_option(function: F) -> F:
    """Add `--data-dir`."""
    return click.option(
        "--data-dir",
        type=click.Path(file_okay=False, path_type=Path),
        help="Folder of the node's files.  [env: MESHNODE_DATA_DIR]",
    )(function)


def json_option(function: F) -> F:
    """Add `--json`, passed on as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")(function)


def node_options(function: F) -> F:
    """Add what finds a running node: `--data-dir` and `--port`."""
    port = click.option(
        "--port",
        type=click.IntRange(1, 65535),
        help="Port of the running node, instead of asking its data folder.  [env: MESHNODE_PORT]",
    )
    return data_dir_option(port(function))


def settings(data_dir: Path | None, port: int | None = None) -> LoadedConfig:
    """Load the configuration as a node in that folder would. Raises ConfigError."""
    return load_config(flags={"node.data_dir": data_dir, "api.port": port}, env=os.environ, file=None)


def connect(data_dir: Path | None, port: int | None) -> Client:
    """Return a client of the running node. Raises NodeDown when none is found."""
    return Client(locate(settings(data_dir, port)))
