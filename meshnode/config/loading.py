"""Where settings come from: defaults, then config.toml, then the environment, then flags; the last one wins."""

import difflib
import enum
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path

import attrs

from meshnode.config.paths import DataPaths, default_data_dir
from meshnode.config.schema import NodeConfig
from meshnode.config.values import as_type
from meshnode.errors import ConfigError

__all__ = ["FLAG_VARIABLES", "LoadedConfig", "Origin", "OriginKind", "convert", "known_keys", "load_config"]

FLAG_VARIABLES: typing.Final[Mapping[str, str]] = types.MappingProxyType(
    {
        "MESHNODE_DATA_DIR": "node.data_dir",
        "MESHNODE_OFFLINE": "node.offline",
        "MESHNODE_HOST": "api.host",
        "MESHNODE_PORT": "api.port",
        "MESHNODE_API_KEY": "api.key",
        "MESHNODE_MODEL": "models.names",
        "MESHNODE_BLOCKS": "models.blocks",
        "MESHNODE_SPREAD": "models.spread",
        "MESHNODE_THREADS": "engine.threads",
        "MESHNODE_DEVICE": "engine.device",
        "MESHNODE_BOOTSTRAP": "network.bootstrap",
        "MESHNODE_P2P_PORT": "network.port",
        "MESHNODE_LOG_LEVEL": "log.level",
        "MESHNODE_JSON": "cli.json",
    }
)
"""Short environment names of flags. `MESHNODE_NO_BROWSER` is handled beside them."""

_RESERVED = frozenset({"MESHNODE_NO_BROWSER"})
_ELSEWHERE = frozenset(  # read by the starter source and by `meshnode demo`; no settings
    {"MESHNODE_STARTER_WHEEL", "MESHNODE_DEMO_NODES", "MESHNODE_DEMO_TOKENS", "MESHNODE_DEMO_PROMPT"}
)


class OriginKind(enum.Enum):
    """Which of the four places a value came from."""

    DEFAULT = "default"
    FILE = "file"
    ENVIRONMENT = "environment"
    FLAG = "flag"


@attrs.frozen
class Origin:
    """Where one value came from; `name` is the file, the variable or the flag."""

    kind: OriginKind
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind.value} {self.name}".strip()


@attrs.frozen
class LoadedConfig:
    """A complete configuration, the origin of every value by key (`section.field`), and the file that was looked for."""

    config: NodeConfig
    origins: dict[str, Origin]
    file: Path


_Layer: typing.TypeAlias = dict[str, tuple[object, Origin]]


def known_keys() -> dict[str, typing.Any]:
    """Return the type of every setting by its key."""
    keys: dict[str, typing.Any] = {}
    for section in attrs.fields(NodeConfig):
        assert isinstance(section.type, type)
        hints = typing.get_type_hints(section.type)
        for field in attrs.fields(section.type):
            keys[f"{section.name}.{field.name}"] = hints[field.name]
    return keys


def convert(key: str, value: object, origin: Origin) -> object:
    """Return `value` as the type of setting `key`. Raises ConfigError naming key and origin."""
    try:
        return as_type(known_keys()[key], value)
    except ValueError as error:
        raise ConfigError(f"{key}: {error} (from {origin})") from error


def load_config(*, flags: Mapping[str, object], env: Mapping[str, str], file: Path | None) -> LoadedConfig:
    """Combine the four sources. `flags` is keyed by `section.field`; a value of None means not given.

    With `file` None the file is `config.toml` in the data folder that flags and environment name, or in the default
    one; `node.data_dir` in it moves everything else elsewhere. A file that does not exist is an empty one. Raises
    ConfigError naming the key and where the bad value came from.
    """
    above = [_from_environment(env), _from_flags(flags)]
    if file is None:
        chosen = [layer["node.data_dir"][0] for layer in above if "node.data_dir" in layer]
        data_dir = chosen[-1] if chosen else default_data_dir()
        assert isinstance(data_dir, Path)
        file = DataPaths(data_dir).config_file
    layers = [_from_file(file), *above]
    values: dict[str, object] = {}
    origins = dict.fromkeys(known_keys(), Origin(OriginKind.DEFAULT))
    for layer in layers:
        for key, (value, origin) in layer.items():
            values[key], origins[key] = value, origin
    return LoadedConfig(_build(values, origins), origins, file)


def _build(values: Mapping[str, object], origins: Mapping[str, Origin]) -> NodeConfig:
    sections: dict[str, typing.Any] = {}
    for section in attrs.fields(NodeConfig):
        prefix = section.name + "."
        chosen = {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}
        assert section.type is not None
        for name, value in chosen.items():  # one at a time, so that an error can name its key
            try:
                section.type(**{name: value})
            except ValueError as error:
                raise ConfigError(f"{prefix}{name}: {error} (from {origins[prefix + name]})") from error
        sections[section.name] = section.type(**chosen)
    return NodeConfig(**sections)


def _from_file(file: Path) -> _Layer:
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}") from error
    origin = Origin(OriginKind.FILE, str(file))
    layer: _Layer = {}
    sections = [section.name for section in attrs.fields(NodeConfig)]
    for section, content in document.items():
        if section not in sections:
            raise ConfigError(f"{section}: no such section{_hint(section, sections)} (from {origin})")
        if not isinstance(content, dict):
            raise ConfigError(f"{section}: must be a table, [{section}] (from {origin})")
        for name, value in content.items():
            key = f"{section}.{name}"
            _check_known(key, origin)
            layer[key] = (convert(key, value, origin), origin)
    return layer


def _from_environment(env: Mapping[str, str]) -> _Layer:
    long_names = {f"MESHNODE_{key.replace('.', '_').upper()}": key for key in known_keys()}
    names = long_names | dict(FLAG_VARIABLES)
    layer: _Layer = {}
    for variable, text in sorted(env.items()):
        if not variable.startswith("MESHNODE_") or variable in _ELSEWHERE:
            continue
        origin = Origin(OriginKind.ENVIRONMENT, variable)
        if variable == "MESHNODE_NO_BROWSER":
            layer["api.open_browser"] = (not convert("api.open_browser", text, origin), origin)
            continue
        if variable not in names:
            raise ConfigError(
                f"{variable}: no such setting{_hint(variable, [*names, *_RESERVED])} (from the environment)"
            )
        key = names[variable]
        if key in layer:
            raise ConfigError(f"{key}: set twice, by {layer[key][1].name} and {variable} (from the environment)")
        layer[key] = (convert(key, text, origin), origin)
    return layer


def _from_flags(flags: Mapping[str, object]) -> _Layer:
    flag_names = {
        key: "--" + name.removeprefix("MESHNODE_").lower().replace("_", "-") for name, key in FLAG_VARIABLES.items()
    }
    flag_names["api.open_browser"] = "--no-browser"
    layer: _Layer = {}
    for key, value in flags.items():
        origin = Origin(OriginKind.FLAG, flag_names.get(key, "--" + key.partition(".")[2].replace("_", "-")))
        _check_known(key, origin)
        if value is not None:
            layer[key] = (convert(key, value, origin), origin)
    return layer


def _check_known(key: str, origin: Origin) -> None:
    keys = known_keys()
    if key not in keys:
        raise ConfigError(f"{key}: no such setting{_hint(key, list(keys))} (from {origin})")


def _hint(name: str, candidates: list[str]) -> str:
    close = difflib.get_close_matches(name, candidates, n=1)
    return f"; did you mean {close[0]}?" if close else ""
