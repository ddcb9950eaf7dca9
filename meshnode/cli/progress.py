"""A progress bar on standard error: one line rewritten on a terminal, a line for each phase elsewhere."""

import sys
from collections.abc import Mapping
from typing import Any

import attrs
import click

from meshnode.cli.printing import printable, size

__all__ = ["ProgressBar"]

_WIDTH = 30  # characters


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
        phase, done, total = (
            str(progress.get("phase", "")),
            int(progress.get("done_bytes") or 0),
            int(progress.get("total_bytes") or 0),
        )
        if sys.stderr.isatty():
            share = min(1.0, done / total) if total else 0.0
            bar = "#" * round(share * _WIDTH)
            of = f"{size(done)} of {size(total)}" if total else size(done)
            click.echo(f"\r\x1b[K{printable(phase):<12} [{bar:<{_WIDTH}}] {of}", nl=False, err=True)
            self._drawn = True
        elif phase != self._phase:
            click.echo(f"{printable(phase)}" + (f" {size(total)}" if total else ""), err=True)
        self._phase = phase

    def finish(self) -> None:
        """End the line, if one was begun."""
        if self._drawn:
            click.echo(err=True)
            self._drawn = False
