"""Where a running node is, and the key it takes: what the command line knows before it says a word over HTTP."""

import json

import attrs

from meshnode.cli.failures import CommandFailed, NodeDown
from meshnode.config.loading import LoadedConfig, OriginKind
from meshnode.config.paths import DataPaths

__all__ = ["Address", "ApiKey", "find_api_key", "is_named", "locate"]

_GIVE_IT = "give the key with MESHNODE_API_KEY or --api-key"


@attrs.frozen
class ApiKey:
    """The key of a node."""

    text: str = attrs.field(repr=False)
    origin: str  # in words: where it came from


@attrs.frozen
class Address:
    """Where a node is."""

    host: str
    port: int

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

    Raises NodeDown when neither says anything, CommandFailed when we may not look.
    """
    config, paths = loaded.config, DataPaths(loaded.config.node.data_dir)
    if is_named(loaded):
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.api.host, config.api.host)  # noqa: S104 - compared
        return Address(host, config.api.port)
    try:
        said = json.loads(paths.runtime_file.read_bytes())
        return Address(str(said["host"]), int(said["port"]))
    except PermissionError as error:
        raise CommandFailed(
            f"{paths.root} belongs to another user, so its node cannot be found through it; say where it is with --port, "
            f"and {_GIVE_IT}"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NodeDown(
            f"no node is running in {paths.root}; start one with `meshnode run`, "
            "or say where it is with --data-dir or --port"
        ) from error


def find_api_key(loaded: LoadedConfig) -> ApiKey:
    """Return the key that was given, else the one that the node made in its data folder. Raises CommandFailed."""
    given, paths = loaded.config.api.key, DataPaths(loaded.config.node.data_dir)
    if given is not None:
        return ApiKey(given, f"from {loaded.origins['api.key']}")
    try:
        key = paths.api_key.read_text(encoding="ascii").strip()
    except FileNotFoundError as error:
        raise CommandFailed(
            f"there is no key in {paths.root}; `meshnode run` makes one there at its first start. A node that was given "
            f"its key, by systemd for example, keeps none there: {_GIVE_IT}"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise CommandFailed(f"the key file {paths.api_key} cannot be read: {error}; {_GIVE_IT}") from error
    if not key:
        raise CommandFailed(f"the key file {paths.api_key} is empty; start the node again to have a new key made")
    return ApiKey(key, f"in {paths.api_key}")
