"""Every setting, with its default, unit and range.

A setting's key is `section.field`, in `config.toml` and in error messages; its environment variable is
`MESHNODE_SECTION_FIELD`. Settings with a command-line flag also answer to `MESHNODE_` plus the flag's name.
"""

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
from attrs.validators import optional

from meshnode.config.paths import default_data_dir
from meshnode.config.urls import is_safe_url
from meshnode.types.blocks import BlockRange

__all__ = [
    "ApiConfig",
    "ChatConfig",
    "CommandLineConfig",
    "EngineConfig",
    "HubConfig",
    "InferenceConfig",
    "LogConfig",
    "ModelsConfig",
    "NetworkConfig",
    "NodeConfig",
    "NodeSection",
    "ResourcesConfig",
    "TransferConfig",
    "UpdatesConfig",
]

_Validator = Callable[[Any, "attrs.Attribute[Any]", Any], None]


def _between(low: float, high: float) -> _Validator:
    def check(_instance: object, _attribute: "attrs.Attribute[Any]", value: float) -> None:
        if not low <= value <= high:
            raise ValueError(f"must be from {low} to {high}, not {value}")

    return check


def _one_of(*choices: str) -> _Validator:
    def check(_instance: object, _attribute: "attrs.Attribute[Any]", value: str) -> None:
        if value not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}, not {value!r}")

    return check


def _not_empty(_instance: object, _attribute: "attrs.Attribute[Any]", value: str) -> None:
    if not value:
        raise ValueError("must not be empty")


def _names_others(_instance: object, _attribute: "attrs.Attribute[Any]", value: dict[str, str]) -> None:
    for alias, name in value.items():
        if not alias or not name or alias == name:
            raise ValueError(f"an alias stands for another name; {alias!r} = {name!r} does not")


def _block_range(_instance: object, _attribute: "attrs.Attribute[Any]", value: str | None) -> None:
    if value is not None:
        BlockRange.parse(value)


def _key(_instance: object, _attribute: "attrs.Attribute[Any]", value: str) -> None:
    if len(value) < 8 or not all("!" <= character <= "~" for character in value):
        raise ValueError("must be at least 8 characters of ASCII without spaces")  # and the text does not quote it


def _safe_url(_instance: object, _attribute: "attrs.Attribute[Any]", value: str | None) -> None:
    if value is not None and not is_safe_url(value):
        raise ValueError(f"must be an https address, or an http one of this machine itself, not {value!r}")


def _public_keys(_instance: object, _attribute: "attrs.Attribute[Any]", value: tuple[str, ...]) -> None:
    keys = set()
    for text in value:
        try:
            raw = base64.b64decode(text, validate=True)
        except ValueError:
            raw = b""
        if len(raw) != 32:
            raise ValueError(f"must be Ed25519 public keys, 32 bytes each in base64; {text!r} is not")
        keys.add(raw)
    if len(keys) < len(value):
        raise ValueError("names a key twice")


@attrs.frozen
class NodeSection:
    """The node as a whole."""

    data_dir: Path = attrs.field(factory=default_data_dir)  # folder for everything the node keeps
    offline: bool = False  # true: never open a connection beyond this machine


@attrs.frozen
class ApiConfig:
    """The HTTP API."""

    host: str = attrs.field(default="127.0.0.1", validator=_not_empty)  # address to listen on
    key: str | None = (
        attrs.field(  # what clients must send; unset: the file api_key in the data folder, made when needed
            default=None, validator=optional(_key), repr=False
        )
    )
    port: int = attrs.field(default=8800, validator=_between(0, 65535))  # 0: any free port
    body_limit_bytes: int = attrs.field(default=8 << 20, validator=_between(1024, 1 << 30))  # bytes, 1 KiB to 1 GiB
    requests_per_minute: int = attrs.field(default=6000, validator=_between(1, 1_000_000))  # per address
    body_timeout: float = attrs.field(
        default=20.0, validator=_between(0.1, 3600)
    )  # seconds for a request's body to arrive
    write_timeout: float = attrs.field(default=30.0, validator=_between(0.1, 3600))  # seconds a client may not read
    keep_alive_timeout: float = attrs.field(default=30.0, validator=_between(0.1, 3600))  # seconds of idle connection
    drain_timeout: float = attrs.field(default=10.0, validator=_between(0, 25))  # seconds to finish streams at stop
    max_connections: int = attrs.field(default=256, validator=_between(1, 65535))  # open at once
    open_browser: bool = True  # show the node's page at start, when a person sits at this machine's screen


@attrs.frozen
class EngineConfig:
    """The computation."""

    device: str = attrs.field(default="auto", validator=_one_of("auto", "cpu", "cuda"))
    threads: int = attrs.field(default=0, validator=_between(0, 1024))  # 0: all physical cores
    cache_bytes: int = attrs.field(default=0, validator=_between(0, 1 << 50))  # bytes of KV cache; 0: from free memory
    context_length: int = attrs.field(default=0, validator=_between(0, 1 << 24))  # tokens; 0: the model's, up to 8192
    max_batch: int = attrs.field(default=8, validator=_between(1, 1024))  # sessions in one decode step
    prefill_chunk: int = attrs.field(  # prompt tokens in one step; no more than 128 of them while others decode
        default=512, validator=_between(1, 65536)
    )


@attrs.frozen
class ModelsConfig:
    """Which models to serve."""

    names: tuple[str, ...] = ()  # references to load at start; empty: a model that is alone
    blocks: str | None = attrs.field(default=None, validator=_block_range)  # START:END, half-open; unset: all
    spread: bool = False  # true: `models add` divides what comes from a hub among the nodes that give room
    aliases: dict[str, str] = attrs.field(factory=dict, validator=_names_others)  # alias -> model name


@attrs.frozen
class InferenceConfig:
    """Admission of generations."""

    queue_length: int = attrs.field(default=512, validator=_between(1, 100_000))  # waiting requests before a refusal
    max_concurrent: int = attrs.field(default=8, validator=_between(1, 1024))  # generations at once
    request_timeout: float = attrs.field(default=600.0, validator=_between(1, 86400))  # seconds, from admission to end
    privacy: str = attrs.field(
        default="anyone", validator=_one_of("anyone", "pool_and_lan", "this_node_only")
    )  # who helps; there are no pools yet, so the second means peers reached directly at a private address
    boomerang: bool = False  # true: embedding and head run here, so that text and tokens never leave this node
    max_stages: int = attrs.field(default=64, validator=_between(0, 4096))  # stages run for sessions at once


@attrs.frozen
class NetworkConfig:
    """The mesh: other nodes, and how they are found."""

    enabled: bool = True  # false: this node has no peers
    host: str = attrs.field(default="0.0.0.0", validator=_not_empty)  # noqa: S104  # address to listen on for peers
    port: int | None = attrs.field(
        default=None, validator=optional(_between(0, 65535))
    )  # unset: the API's + 10; 0: any
    network_id: str = attrs.field(default="meshnode", validator=_not_empty)  # nodes of another id are refused
    bootstrap: tuple[str, ...] = ()  # multiaddrs of nodes to begin with, each with /p2p/
    # multiaddrs to tell others besides those found, for port forwarding. Activations and shards go to these hosts too, if
    # they are numbers: nobody looks up a name for a peer
    announce: tuple[str, ...] = ()
    data_port: int = attrs.field(default=0, validator=_between(0, 65535))  # to listen on for activations; 0: any
    bulk_port: int = attrs.field(default=0, validator=_between(0, 65535))  # to listen on for shards; 0: any
    mdns: bool = False  # find nodes on the local network, and be found there, by multicast DNS
    relay: bool = True  # carry streams, encrypted end to end, between nodes that reach only this one
    max_peers: int = attrs.field(default=64, validator=_between(1, 4096))  # control links at once


@attrs.frozen
class ResourcesConfig:
    """What models may take of this machine, and what it gives to the mesh of its own accord."""

    memory_bytes: int = attrs.field(  # of the system's memory, weights and caches of all models; 0: what is free
        default=0, validator=_between(0, 1 << 50)
    )
    gpu_bytes: int = attrs.field(default=0, validator=_between(0, 1 << 50))  # likewise, of a GPU's memory
    disk_bytes: int = (
        attrs.field(  # for parts of models that nobody here asked for, fetched where the mesh lacks copies;
            default=0,
            validator=_between(0, 1 << 50),  # 0: none
        )
    )


@attrs.frozen
class HubConfig:
    """What this node asks a hub of its own accord: what is popular there, and what nobody has any more of models from there.

    No model is downloaded that nobody has asked for.
    """

    # false: a hub is asked for nothing but what a person names, here or, with --spread, on a node that this one gives room to
    watch: bool = True
    interval: float = attrs.field(default=3600.0, validator=_between(1, 30 * 86400))  # seconds between two looks
    publishers: tuple[str, ...] = (  # only theirs pass by downloads; (): anybody's, with ten times as many
        "HuggingFaceTB",
        "Qwen",
        "bartowski",
        "ggml-org",
        "google",
        "ibm-granite",
        "lmstudio-community",
        "meta-llama",
        "microsoft",
        "mistralai",
        "unsloth",
    )
    min_age_hours: float = attrs.field(default=24.0, validator=_between(0, 24 * 365))  # of a repository that is trusted


@attrs.frozen
class TransferConfig:
    """Shards that peers fetch from here."""

    # false: no shards are given to others, kept for them whatever resources.disk_bytes is, nor told of; what is loaded here
    # runs for others all the same
    share: bool = True
    upload_bytes_per_second: float = attrs.field(
        default=0.0, validator=_between(0, 1e12)
    )  # to all together; 0: no limit
    upload_bytes_per_second_per_peer: float = attrs.field(default=0.0, validator=_between(0, 1e12))  # 0: no limit


@attrs.frozen
class UpdatesConfig:
    """New versions of meshnode itself; docs/updates.md."""

    enabled: bool = False  # true: look for signed releases, and run the version that was applied last
    url: str | None = attrs.field(default=None, validator=optional(_safe_url))  # of the release document
    keys: tuple[str, ...] = attrs.field(default=(), validator=_public_keys)  # Ed25519 public keys in base64
    threshold: int = attrs.field(default=2, validator=_between(2, 16))  # different keys that must have signed
    channel: str = attrs.field(default="stable", validator=_not_empty)  # releases of another one are refused
    interval: float = attrs.field(default=3600.0, validator=_between(60, 2_592_000))  # seconds between looks, +-10 %
    apply: bool = False  # true: install and restart by itself when nothing runs; false: only say that there is one
    ready_timeout: float = attrs.field(  # seconds a new version has to become ready before the old one is back
        default=40.0, validator=_between(5, 600)
    )


@attrs.frozen
class LogConfig:
    """The log on standard error."""

    level: str = attrs.field(default="info", validator=_one_of("debug", "info", "warning", "error"))
    format: str = attrs.field(default="auto", validator=_one_of("auto", "text", "json"))  # auto: text on a terminal


@attrs.frozen
class ChatConfig:
    """What `meshnode chat` asks for; whatever is not set is left to the node."""

    model: str | None = None  # name or alias; unset: the first one loaded
    system: str | None = None  # the system message
    temperature: float | None = attrs.field(default=None, validator=optional(_between(0, 2)))
    max_tokens: int | None = attrs.field(default=None, validator=optional(_between(1, 1 << 24)))  # tokens of an answer
    seed: int | None = attrs.field(default=None, validator=optional(_between(-(1 << 63), (1 << 63) - 1)))


@attrs.frozen
class CommandLineConfig:
    """The commands themselves."""

    json: bool = False  # print JSON for programs, as --json does


@attrs.frozen
class NodeConfig:
    """All settings of a node."""

    node: NodeSection = attrs.field(factory=NodeSection)
    api: ApiConfig = attrs.field(factory=ApiConfig)
    engine: EngineConfig = attrs.field(factory=EngineConfig)
    models: ModelsConfig = attrs.field(factory=ModelsConfig)
    inference: InferenceConfig = attrs.field(factory=InferenceConfig)
    network: NetworkConfig = attrs.field(factory=NetworkConfig)
    resources: ResourcesConfig = attrs.field(factory=ResourcesConfig)
    transfer: TransferConfig = attrs.field(factory=TransferConfig)
    hub: HubConfig = attrs.field(factory=HubConfig)
    updates: UpdatesConfig = attrs.field(factory=UpdatesConfig)
    log: LogConfig = attrs.field(factory=LogConfig)
    chat: ChatConfig = attrs.field(factory=ChatConfig)
    cli: CommandLineConfig = attrs.field(factory=CommandLineConfig)
