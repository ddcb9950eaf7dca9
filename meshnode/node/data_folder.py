"""The data folder: made private, proved writable, and held by one node at a time."""

import errno
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from meshnode.config.paths import DataPaths
from meshnode.errors import ConfigError

__all__ = ["announce", "hold_data_folder"]


@contextmanager
def hold_data_folder(root: Path) -> Iterator[DataPaths]:
    """Create the folder if need be and keep every other node out of it until the context is left.

    Raises ConfigError when it cannot be used or another node holds it. The kernel drops the lock with the process, so a
    killed node leaves nothing to clean up.
    """
    paths = DataPaths(root)
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(root / "node.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"the data folder {root} cannot be used: {_reason(error)}") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise ConfigError(f"the data folder {root} cannot be locked: {_reason(error)}") from error
            raise ConfigError(f"the data folder {root} is in use by another node{_holder(paths)}") from error
        yield paths
    finally:
        os.close(lock)


@contextmanager
def announce(paths: DataPaths, host: str, port: int) -> Iterator[None]:
    """Keep the runtime file, by which the command line finds the running node, for as long as the context lasts."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  # compared, not bound
    text = json.dumps({"host": reachable, "port": port, "pid": os.getpid()})
    fresh = paths.runtime_file.with_suffix(".new")
    try:
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(paths.runtime_file)
    except OSError as error:
        raise ConfigError(f"the data folder {paths.root} cannot be used: {_reason(error)}") from error
    try:
        yield
    finally:
        with suppress(OSError):
            paths.runtime_file.unlink()


def _holder(paths: DataPaths) -> str:
    try:
        return f" (pid {int(json.loads(paths.runtime_file.read_bytes())['pid'])})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
