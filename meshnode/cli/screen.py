"""What a person sees of `meshnode run`: the log above, one line of progress below it, and what to do next."""

import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO, cast

import attrs

from meshnode.cli.printing import printable
from meshnode.cli.progress import drawn
from meshnode.config.loading import LoadedConfig, OriginKind

__all__ = ["Screen", "command_line"]

_ERASE = "\r\x1b[K"


def command_line(loaded: LoadedConfig, *words: str) -> str:
    """Return a command that reaches the node of these settings, as it is typed in another terminal."""
    program = ["python", "-m", "meshnode"] if Path(sys.argv[0]).name == "__main__.py" else ["meshnode"]
    elsewhere = loaded.origins["node.data_dir"].kind is not OriginKind.DEFAULT
    folder = ["--data-dir", str(loaded.config.node.data_dir)] if elsewhere else []
    return " ".join([*program, *words, *map(shlex.quote, folder)])


@attrs.define(eq=False)
class _Above:
    """A text stream whose lines appear above the progress line. Writing never raises: a terminal may go away."""

    _out: TextIO
    _line: str = ""

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            self._out.write((_ERASE if self._line else "") + text + (self._line if text.endswith("\n") else ""))
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._out.flush()

    def isatty(self) -> bool:
        return self._out.isatty()

    def keep(self, line: str) -> None:
        """Show `line` below all else; nothing, if it is empty."""
        if line != self._line:
            before, self._line = self._line, line
            with suppress(OSError, ValueError):
                self._out.write((_ERASE if before else "") + line)
                self._out.flush()


class Screen:
    """A terminal while a node runs on it; see meshnode.node.audience for who calls what."""

    def __init__(self, out: TextIO, loaded: LoadedConfig) -> None:
        self._above = _Above(out)
        self._loaded = loaded
        self._has_shown_chat = False

    @property
    def log(self) -> TextIO:
        """Where log lines go."""
        return cast("TextIO", self._above)

    def show_progress(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Draw the first acquisition that is under way, or none."""
        line = drawn(rows[0]) if rows else ""
        if len(rows) > 1:
            line += f"  and {len(rows) - 1} more"
        self._above.keep(line[: shutil.get_terminal_size().columns - 1])  # a wrapped line could not be erased

    def show_address(self, url: str, *, has_models: bool) -> None:
        """Say where the API is, and how to get a model if there is none."""
        self._say(f"\nOpen {url} in a browser. The API is at {url}/v1. The key of both is what this prints:\n")
        self._say(f"  {self._command('token')}\n")
        if not has_models:
            self._say(f"There is no model yet. In another terminal:\n\n  {self._command('models add starter')}\n")

    def show_model(self, name: str) -> None:
        """Say that a model answers now; the first time, how to ask it."""
        if self._has_shown_chat:
            self._say(f"{printable(name)} is ready.")
            return
        self._has_shown_chat = True
        command = self._command('chat "Why is the sky blue?"')
        self._say(f"\n{printable(name)} is ready. In another terminal:\n\n  {command}\n")

    def close(self) -> None:
        """Take the progress line away."""
        self._above.keep("")

    def _command(self, words: str) -> str:
        return command_line(self._loaded, words)

    def _say(self, text: str) -> None:
        self._above.write(text + "\n")
        self._above.flush()
