"""Fetches one wheel with pip, watched, and ended with us."""

import os
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from signal import SIGKILL

import trio

from meshnode.errors import FileError, SourceUnavailable
from meshnode.files import tethered
from meshnode.flow.lanes import Lanes

__all__ = ["download_wheel"]

_LOOK_EVERY = 0.2  # seconds between two looks at the growing file
_LAST_LINES = 4
_LAST_CHARACTERS = 800
_FULL = ("[Errno 28]", "No space left on device", "[Errno 122]")  # of a disk, and of a quota


async def download_wheel(requirement: str, scratch: Path, lanes: Lanes, report: Callable[[int], None]) -> Path:
    """Download the wheel of `requirement` (`name==version`), without dependencies, and return the folder it is in.

    Everything, pip's own temporary files too, lies below `scratch`; `report` hears the bytes there are so far. Cancellation
    kills pip and waits for it to be gone. Raises SourceUnavailable with pip's last lines, and FileError when the disk is full.
    """
    target, temporary = scratch / "wheels", scratch / "pip"
    await lanes.run("disk", _make_folders, target, temporary)
    command = [
        *(sys.executable, "-P", tethered.__file__, "pip", "download"),
        *("--no-deps", "--only-binary", ":all:", "--dest", str(target)),
        *("--no-input", "--no-color", "--progress-bar", "off", "--disable-pip-version-check", requirement),
    ]
    lines: deque[str] = deque(maxlen=_LAST_LINES)
    async with (
        _tethered_process(command, os.environ | {"TMPDIR": str(temporary)}) as process,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(_watch_growth, scratch, lanes, report)
        await _read_lines(process, lines)
        code = await process.wait()
        nursery.cancel_scope.cancel()
    if code != 0 and any(text in line for line in lines for text in _FULL):
        raise FileError(
            f"the disk of {scratch} is full; free some space, or choose another data folder with --data-dir"
        )
    if code != 0:
        said = " / ".join(lines)[-_LAST_CHARACTERS:] or f"it ended with status {code} and said nothing"
        raise SourceUnavailable(f"pip could not fetch {requirement}: {said}")
    return target


def _make_folders(*folders: Path) -> None:
    try:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"cannot make a folder in {folders[0].parent}: {error.strerror}") from error


@asynccontextmanager
async def _tethered_process(command: list[str], environment: dict[str, str]) -> AsyncIterator[trio.Process]:
    try:
        process = await trio.lowlevel.open_process(
            command,
            stdin=subprocess.PIPE,  # closes when we go, which ends the child: see tethered.py
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    except OSError as error:
        raise SourceUnavailable(f"cannot run {sys.executable or 'Python'}: {error.strerror}") from error
    try:
        yield process
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, SIGKILL)
        with trio.CancelScope(shield=True):
            await process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    await pipe.aclose()


async def _read_lines(process: trio.Process, lines: deque[str]) -> None:
    assert process.stdout is not None
    rest = ""
    async for data in process.stdout:
        *complete, rest = (rest[-_LAST_CHARACTERS:] + data.decode(errors="replace")).split("\n")
        lines.extend(line.strip() for line in complete if line.strip())
    if rest.strip():
        lines.append(rest.strip())


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
