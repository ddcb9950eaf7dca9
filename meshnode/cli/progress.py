"""A progress bar on standard error: one line rewritten on a terminal, a line for each phase elsewhere."""

import sys
from collections.abc import Mapping
from typing import Any

import attrs
import click

from meshnode.cli.printing import printable, size

__all__ = ["ProgressBar", "drawn"]

_WIDTH = 30  # characters


def drawn(progress: Mapping[str, Any]) -> str:
    """Return an acquisition's phase, share and bytes as one line of a terminal."""
    phase, done, total = _read(progress)
    if not total:
        return f"{phase:<12} {size(done)}" if done else phase
    share = min(1.0, done / total)
    bar = "#" * round(share * _WIDTH)
    return f"{phase:<12} [{bar:<{_WIDTH}}] {int(share * 100):3d} %  {size(done)} of {size(total)}"


@attrs.define
class ProgressBar:
    """Shows acquisition progress as the node reports it: phase, done_bytes, total_bytes."""

    enabled: bool = True
    _phase: str = ""
    _drawn: bool = False

    def show(self, progress: Mapping[str, Any]) -> None:
        """Draw the newest state."""
        if not self.enabled or progress.get("phase") == "failed":  # the command's error line says that
            return
        phase, _, total = _read(progress)
        if sys.stderr.isatty():
            click.echo(f"\r\x1b[K{drawn(progress)}", nl=False, err=True)
            self._drawn = True
        elif phase not in (self._phase, "done"):  # the command's own last line says that it is done
            click.echo(phase + (f" {size(total)}" if total else ""), err=True)
        self._phase = phase

    def finish(self) -> None:
        """End the line, if one was begun."""
        if self._drawn:
            click.echo(err=True)
            self._drawn = False


def _read(progress: Mapping[str, Any]) -> tuple[str, int, int]:
    done, total = progress.get("done_bytes"), progress.get("total_bytes")
    return printable(str(progress.get("phase", ""))), int(done or 0), int(total or 0)
