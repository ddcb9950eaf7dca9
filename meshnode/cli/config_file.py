"""Writes config.toml, so that what it does not change stays as a person wrote it."""

import os
import tempfile
from pathlib import Path
from typing import Any

from meshnode.config.loading import load_config
from meshnode.errors import ConfigError

__all__ = ["write_setting"]


def write_setting(file: Path, key: str, value: object) -> None:
    """Replace the file by one with the new value of `key` (section.name).

    Raises ConfigError, and changes nothing, when it cannot be written or would be refused at the next start.
    """
    import tomlkit

    file = file.resolve()  # a link stays one
    section, _, name = key.partition(".")
    try:
        document = tomlkit.parse(file.read_text(encoding="utf-8")) if file.exists() else tomlkit.document()
        if section not in document:
            document[section] = tomlkit.table()
        table: Any = document[section]
        table[name] = value
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, fresh = tempfile.mkstemp(dir=file.parent, prefix="config-", suffix=".toml")
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written: {error.strerror or error}") from error
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(tomlkit.dumps(document))
            stream.flush()
            os.fsync(stream.fileno())
        try:
            load_config(flags={}, env={}, file=Path(fresh))
        except ConfigError as error:
            raise ConfigError(str(error).replace(fresh, str(file))) from error
        Path(fresh).replace(file)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written: {error.strerror or error}") from error
    finally:
        Path(fresh).unlink(missing_ok=True)
