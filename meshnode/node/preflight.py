"""What can be known at the start to be impossible, said in one line instead of tried for ever."""

import sys
from collections.abc import Sequence
from pathlib import Path

from meshnode.config.loading import LoadedConfig
from meshnode.config.schema import NodeConfig
from meshnode.errors import ConfigError, MeshnodeError
from meshnode.files.catalog import ModelCatalog
from meshnode.files.hub_reference import HUB_PREFIX
from meshnode.files.sources import Source, SourceModel
from meshnode.network.addresses import parse_address
from meshnode.text.vocabulary import build_tokenizer
from meshnode.types.ids import PeerId

__all__ = ["check_addresses", "check_machine", "check_models", "examine_tokenizer"]

_GPU_DEVICES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd", "/dev/nvhost-ctrl", "/dev/nvmap")
"""NVIDIA's driver, Windows' beneath WSL, AMD's, and those of NVIDIA's small boards."""


def check_machine(config: NodeConfig) -> None:
    """Raise ConfigError for a device that this machine does not show."""
    if config.engine.device.startswith("cuda") and sys.platform == "linux":
        if not any(Path(device).exists() for device in _GPU_DEVICES):
            raise ConfigError("engine.device is cuda, and this machine shows no GPU; use auto or cpu")


def check_addresses(loaded: LoadedConfig, own: PeerId) -> None:
    """Raise ConfigError for an address of a node that cannot be read, and for one to announce that is not this node's."""
    network = loaded.config.network
    for key, addresses in (("network.bootstrap", network.bootstrap), ("network.announce", network.announce)):
        for address in addresses:
            try:
                peer = parse_address(address).peer
            except ValueError as error:
                raise ConfigError(f"{key}: {error} (from {loaded.origins[key]})") from error
            if key == "network.announce" and peer != own:
                raise ConfigError(f"{key}: {address} is not this node's: it ends with /p2p/{own}")


def check_models(names: Sequence[str], catalog: ModelCatalog, sources: Sequence[Source]) -> None:
    """Raise ConfigError for a path that leads to nothing, unless the model has been imported from there before."""
    for name in names:
        if not _is_path(name) or Path(name).expanduser().exists():
            continue
        source = next((each for each in sources if each.accepts(name)), None)
        if source is not None and catalog.by_reference(source.canonical(name)) is not None:
            continue
        try:
            catalog.resolve(name)
        except MeshnodeError as error:
            raise ConfigError(f"models.names: there is nothing at {name}") from error


def examine_tokenizer(model: SourceModel) -> None:
    """Refuse a model for whose vocabulary there is no tokenizer before a byte of it is written. Raises FileError leafs."""
    build_tokenizer(model.tokenizer)


def _is_path(name: str) -> bool:
    return name.startswith(("/", "./", "../", "~")) or (name.endswith(".gguf") and not name.startswith(HUB_PREFIX))
