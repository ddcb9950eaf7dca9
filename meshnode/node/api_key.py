"""The bearer key of the HTTP API: set, or given by the service manager, or made on the first start and kept."""

import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from meshnode.errors import ConfigError

__all__ = ["load_api_key"]


def load_api_key(path: Path, env: Mapping[str, str], *, chosen: str | None = None) -> str:
    """Return the key: the `chosen` one, else the credential `api_key` if systemd passes one, else the one in `path`.

    That one is made if it is not there.

    Raises ConfigError when a key file cannot be read or written, or others may read it and it cannot be made private.
    """
    if chosen is not None:
        return chosen
    credentials = env.get("CREDENTIALS_DIRECTORY")
    if credentials:
        given = _read(Path(credentials) / "api_key")
        if given:
            return given
    try:
        kept = _read(path)
        if kept:
            if path.stat().st_mode & 0o077:
                path.chmod(0o600)
            return kept
        path.unlink(missing_ok=True)  # empty: the disk was full when it was made
        return _make(path)
    except OSError as error:
        raise ConfigError(f"the key file {path} cannot be used: {error.strerror or error}") from error


def _read(path: Path) -> str | None:
    try:
        key = path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise ConfigError(f"the key file {path} is not text; delete it to have a new key made") from error
    except OSError as error:
        raise ConfigError(f"the key file {path} cannot be read: {error.strerror or error}") from error
    if any(not character.isprintable() or character == " " for character in key):
        raise ConfigError(f"the key file {path} must hold one key on one line; delete it to have a new one made")
    return key


def _make(path: Path) -> str:
    key = secrets.token_urlsafe(32)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(key + "\n")
        file.flush()
        os.fsync(file.fileno())
    return key
