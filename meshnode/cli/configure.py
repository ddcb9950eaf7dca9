"""`meshnode config`: the settings and where they came from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import click

from meshnode.cli.config_file import write_setting
from meshnode.cli.options import data_dir_option, json_option, settings
from meshnode.cli.printing import print_json, print_table
from meshnode.config.loading import Origin, OriginKind, convert, known_keys, load_config
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
      meshnode config set models.names starter,qwen3-4b
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
    loaded = settings(data_dir, as_json=as_json)
    file = loaded.file
    above = loaded.origins["node.data_dir"]
    if key == "node.data_dir" and above.kind in (OriginKind.FLAG, OriginKind.ENVIRONMENT):
        raise ConfigError(f"node.data_dir: would not count in {file}, which is only read because of {above}")
    origin = Origin(OriginKind.FLAG, "config set")
    if key not in known_keys():
        load_config(flags={key: value}, env={}, file=file)  # refuses it by name, with a hint
    written = _plain(convert(key, value, origin))
    write_setting(file, key, written)
    if key == "api.key":
        written = _HIDDEN
    if loaded.config.cli.json:
        print_json({"key": key, "value": written, "file": str(file)})
    else:
        click.echo(f"{key} = {_text(written)} (in {file}; a running node takes it at its next start)")


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
