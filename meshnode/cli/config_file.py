"""Writes config.toml, so that what it does not change stays as a person wrote it."""

import os
import tempfile
from pathlib import Path
from typing import Any

from meshnode.config.loading import load_config
from meshnode.errors import ConfigError

__all__ = ["write_setting"]


def write_setting(file: Path, key: str, value: object) -> str | None:
    """Replace the file by one with the new value of `key` (section.name).

    A file that was wrong before may still be: then what is wrong now is returned. Raises ConfigError, and changes nothing,
    when it cannot be written, or was right and would be refused at the next start.
    """
    import tomlkit

    file = file.resolve()  # a link stays one
    before, after = _trouble(file), None
    section, _, name = key.partition(".")
    try:
        document = tomlkit.parse(file.read_text(encoding="utf-8")) if file.exists() else tomlkit.document()
        if not isinstance(document.get(section), dict):
            document[section] = tomlkit.table()
        table: Any = document[section]
        table[name] = value
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, fresh = tempfile.mkstemp(dir=file.parent, prefix="config-", suffix=".toml")
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written: {error.strerror or error}") from error
    except tomlkit.exceptions.ParseError as error:
        raise ConfigError(f"{file}: cannot be read: {error}") from error
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(tomlkit.dumps(document))
            stream.flush()
            os.fsync(stream.fileno())
        after = _trouble(Path(fresh))
        if after is not None and before is None:
            raise ConfigError(after.replace(fresh, str(file)))
        Path(fresh).replace(file)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written: {error.strerror or error}") from error
    finally:
        Path(fresh).unlink(missing_ok=True)
    return None if after is None else after.replace(fresh, str(file))


def _trouble(file: Path) -> str | None:
    """Return what is wrong with a file, None for nothing."""
    try:
        load_config(flags={}, env={}, file=file)
    except ConfigError as error:
        return str(error)
    return None
