"""Lines for a person who waits, each with the seconds since the start before it."""

import sys
import time

import attrs
import click

from meshnode.cli.printing import printable

__all__ = ["Stopwatch"]

_ERASE = "\r\x1b[K"


@attrs.define(eq=False)
class Stopwatch:
    """Writes to standard output, or to standard error if a program reads the other; one line shows that time passes."""

    beside_json: bool
    _began: float = attrs.field(factory=time.monotonic, init=False)
    _is_ticking: bool = attrs.field(default=False, init=False)

    def say(self, text: str = "", *, end: str = "\n") -> None:
        """Write `text` as it is."""
        erase, self._is_ticking = (_ERASE if self._is_ticking else ""), False
        click.echo(erase + text + end, nl=False, err=self.beside_json)

    def note(self, text: str) -> None:
        """Write a line that stays."""
        self.say(self._stamped(text))

    def tick(self, text: str) -> None:
        """On a terminal, show `text` and the time until something else is written; elsewhere do nothing."""
        if (sys.stderr if self.beside_json else sys.stdout).isatty():
            self.say(self._stamped(text), end="")
            self._is_ticking = True

    def _stamped(self, text: str) -> str:
        return f"{time.monotonic() - self._began:6.1f} s  {printable(text)}"
