"""Where a running node is, and the key it takes: what the command line knows before it says a word over HTTP."""

import json

import attrs

from meshnode.cli.failures import CommandFailed, NodeDown
from meshnode.config.loading import LoadedConfig, OriginKind
from meshnode.config.paths import DataPaths

__all__ = ["Address", "is_named", "locate", "read_api_key"]


@attrs.frozen
class Address:
    """Where a node is, and where its key is kept."""

    host: str
    port: int
    paths: DataPaths

    @property
    def url(self) -> str:
        """The base URL."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


def is_named(loaded: LoadedConfig) -> bool:
    """Whether the port was asked for in so many words, rather than being what a node would listen on."""
    asked = loaded.origins["api.port"].kind in (OriginKind.FLAG, OriginKind.ENVIRONMENT)
    return asked and loaded.config.api.port != 0


def locate(loaded: LoadedConfig) -> Address:
    """Return the address of the node: the port that was asked for, else what the data folder says.

    Raises NodeDown when neither says anything.
    """
    config, paths = loaded.config, DataPaths(loaded.config.node.data_dir)
    if is_named(loaded):
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.api.host, config.api.host)  # noqa: S104 - compared
        return Address(host, config.api.port, paths)
    try:
        said = json.loads(paths.runtime_file.read_bytes())
        return Address(str(said["host"]), int(said["port"]), paths)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NodeDown(
            f"no node is running in {paths.root}; start one with `meshnode run`, "
            "or say where it is with --data-dir or --port"
        ) from error


def read_api_key(paths: DataPaths) -> str:
    """Return the key that the node made in its data folder. Raises CommandFailed."""
    try:
        key = paths.api_key.read_text(encoding="ascii").strip()
    except FileNotFoundError as error:
        raise CommandFailed(
            f"there is no key in {paths.root}; `meshnode run` makes one at its first start, "
            "unless a service manager gave it one from elsewhere"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise CommandFailed(f"the key file {paths.api_key} cannot be read: {error}") from error
    if not key:
        raise CommandFailed(f"the key file {paths.api_key} is empty; start the node again to have a new key made")
    return key
