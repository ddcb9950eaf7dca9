"""`meshnode config`: the settings and where they came from."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import click

from meshnode.cli.config_file import write_setting
from meshnode.cli.options import data_dir_option, json_option, settings, settings_file
from meshnode.cli.printing import print_json, print_table
from meshnode.config.loading import Origin, OriginKind, convert, load_config
from meshnode.errors import ConfigError

__all__ = ["config"]

_HIDDEN = "(set)"


@click.group()
def config() -> None:
    """Show and change settings.

    \b
    Examples:
      meshnode config show
      meshnode config set api.port 9000
      meshnode config set models.names starter,llama-3.2-1b-instruct
    """  # noqa: D301 - \b is click's mark for a paragraph kept as it is


@config.command()
@data_dir_option
@json_option
def show(*, data_dir: Path | None, as_json: bool | None) -> None:
    """Print every setting, its value and where the value came from."""
    loaded = settings(data_dir, as_json=as_json)
    values: Mapping[str, Mapping[str, Any]] = attrs.asdict(loaded.config)
    if loaded.config.api.key is not None:
        values = {**values, "api": {**values["api"], "key": _HIDDEN}}  # `meshnode token` prints it
    rows = {
        f"{section}.{name}": (_plain(value), str(loaded.origins[f"{section}.{name}"]))
        for section, fields in values.items()
        for name, value in fields.items()
    }
    if loaded.config.cli.json:
        print_json({key: {"value": value, "origin": origin} for key, (value, origin) in rows.items()})
    else:
        print_table(
            ["SETTING", "VALUE", "FROM"], [(key, _text(value), origin) for key, (value, origin) in rows.items()]
        )


@config.command("set")
@click.argument("key")
@click.argument("value")
@data_dir_option
@json_option
def set_(*, key: str, value: str, data_dir: Path | None, as_json: bool | None) -> None:
    """Write one setting to config.toml, leaving its comments and order as they are.

    KEY is section.name as `config show` prints it. Lists are written a,b and
    tables name=value,name=value. A running node sees it at its next start.
    """
    try:
        loaded = settings(data_dir, as_json=as_json)
    except ConfigError:  # what is to be changed may be what is wrong
        file, as_json = settings_file(data_dir), bool(as_json)
        above = Origin(OriginKind.DEFAULT)
    else:
        file, as_json, above = loaded.file, loaded.config.cli.json, loaded.origins["node.data_dir"]
    if key == "node.data_dir" and above.kind in (OriginKind.FLAG, OriginKind.ENVIRONMENT):
        raise ConfigError(f"node.data_dir: would not count in {file}, which is only read because of {above}")
    written = _plain(_checked(key, value))
    remaining = write_setting(file, key, written)
    if key == "api.key":
        written = _HIDDEN
    if remaining is not None:
        click.echo(f"the file has another setting that is wrong: {remaining}", err=True)
    if as_json:
        print_json({"key": key, "value": written, "file": str(file)})
    else:
        click.echo(f"{key} = {_text(written)} (in {file}; a running node takes it at its next start)")


def _checked(key: str, value: str) -> object:
    """Return the value as the setting has it. Raises ConfigError that says what is wrong with it, and nothing of a file."""
    try:
        load_config(flags={key: value}, env={}, file=Path(os.devnull))
        return convert(key, value, Origin(OriginKind.FLAG, "config set"))
    except ConfigError as error:
        raise ConfigError(re.sub(r" \(from [^()]*\)$", "", str(error))) from error


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ",".join(map(str, value)) or "(none)"
    if isinstance(value, dict):
        return ",".join(f"{name}={item}" for name, item in value.items()) or "(none)"
    return "(none)" if value is None else str(value)
