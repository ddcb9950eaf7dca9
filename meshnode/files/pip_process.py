"""Runs pip as a child process that is watched, and ended with us."""

import os
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from signal import SIGKILL

import attrs
import trio

from meshnode.errors import SourceUnavailable
from meshnode.files import tethered

__all__ = ["PipResult", "run_pip"]

_LAST_LINES = 4
_LAST_CHARACTERS = 800
_FULL = ("[Errno 28]", "No space left on device", "[Errno 122]")  # of a disk, and of a quota


@attrs.frozen
class PipResult:
    """How pip ended."""

    code: int
    lines: tuple[str, ...]  # its last ones

    @property
    def is_disk_full(self) -> bool:
        """Whether it failed because there was no room."""
        return self.code != 0 and any(text in line for line in self.lines for text in _FULL)

    @property
    def said(self) -> str:
        """Its last words."""
        return " / ".join(self.lines)[-_LAST_CHARACTERS:] or f"it ended with status {self.code} and said nothing"


async def run_pip(arguments: Sequence[str], temporary: Path) -> PipResult:
    """Run pip and return how it ended; its temporary files lie in `temporary`.

    Cancellation kills pip and waits for it to be gone. Raises SourceUnavailable when it cannot be started.
    """
    quiet = ("--no-input", "--no-color", "--disable-pip-version-check")
    command = [sys.executable, "-P", tethered.__file__, "pip", *arguments, *quiet]
    lines: deque[str] = deque(maxlen=_LAST_LINES)
    async with _tethered_process(command, os.environ | {"TMPDIR": str(temporary)}) as process:
        await _read_lines(process, lines)
        return PipResult(await process.wait(), tuple(lines))


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
