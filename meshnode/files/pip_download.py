"""Fetches one wheel with pip, and tells how far it is."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import trio

from meshnode.errors import FileError, SourceUnavailable
from meshnode.files.pip_process import run_pip
from meshnode.flow.lanes import Lanes

__all__ = ["download_wheel"]

_LOOK_EVERY = 0.2  # seconds between two looks at the growing file


async def download_wheel(requirement: str, scratch: Path, lanes: Lanes, report: Callable[[int], None]) -> Path:
    """Download the wheel of `requirement` (`name==version`), without dependencies, and return the folder it is in.

    Everything, pip's own temporary files too, lies below `scratch`; `report` hears the bytes there are so far. Cancellation
    kills pip and waits for it to be gone. Raises SourceUnavailable with pip's last lines, and FileError when the disk is full.
    """
    target, temporary = scratch / "wheels", scratch / "pip"
    await lanes.run("disk", _make_folders, target, temporary)
    arguments = (
        *("download", "--no-deps", "--only-binary", ":all:", "--dest", str(target)),
        *("--progress-bar", "off", requirement),
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_watch_growth, scratch, lanes, report)
        result = await run_pip(arguments, temporary)
        nursery.cancel_scope.cancel()
    if result.is_disk_full:
        raise FileError(
            f"the disk of {scratch} is full; free some space, or choose another data folder with --data-dir"
        )
    if result.code != 0:
        raise SourceUnavailable(f"pip could not fetch {requirement}: {result.said}")
    return target


def _make_folders(*folders: Path) -> None:
    try:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"cannot make a folder in {folders[0].parent}: {error.strerror}") from error


async def _watch_growth(scratch: Path, lanes: Lanes, report: Callable[[int], None]) -> None:
    while True:
        report(await lanes.run("disk", _largest, scratch))
        await trio.sleep(_LOOK_EVERY)


def _largest(folder: Path) -> int:
    """Return the size of the largest file below `folder`: the one that is coming in."""
    sizes = [0]
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # pip removes its files as it likes
                sizes.append((Path(place) / name).stat().st_size)
    return max(sizes)
