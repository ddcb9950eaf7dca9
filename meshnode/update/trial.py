"""A new version has one attempt: it is confirmed when it has become ready, and taken back for good when it has not.

Who decides is the installation, which starts first and whose code no update touches. While a version is on trial, the
database is kept aside as it was, for a version that takes over may change the form of what is stored.
"""

import shutil
from pathlib import Path

import attrs
import msgspec.structs
import psutil
from packaging.version import InvalidVersion, Version

from meshnode.errors import UpdateBlocked, UpdateError
from meshnode.update.fetching import no_space
from meshnode.update.pointer import Pointer, Trial, load_pointer, save_pointer, slot_of

__all__ = [
    "Ended",
    "Start",
    "activate",
    "begin",
    "choose",
    "confirm",
    "is_tried_elsewhere",
    "keep_store",
    "restore_store",
    "slots_there",
    "take_back",
]

_MAX_TRIES = 3  # starts of a version that was stopped, by a person or the system, before it was ready
_MAX_FAILED = 100  # versions that are remembered
_KEPT_STORE = "store-before-trial"


@attrs.frozen
class Ended:
    """How the trial in the process before this one ended, as the guard tells it."""

    reason: str | None = None  # why the version is no good; None: it was stopped before that could be said


@attrs.frozen
class Start:
    """What to run, and what to write down before it runs."""

    pointer: Pointer
    version: str | None  # None: the installation
    taken_back: str | None = None  # version that this start gives up


def choose(pointer: Pointer, *, installation: str, ended: Ended | None, has_slot: frozenset[str]) -> Start:
    """Decide what runs now. Pure. Nobody else runs on this data folder.

    `ended` comes from the guard of a trial; without it, a trial that had begun ended with its process.
    """
    taken_back = None
    if pointer.trial is not None and pointer.trial.pid:
        if ended is not None and ended.reason is None:
            pointer = msgspec.structs.replace(pointer, trial=Trial(tries=pointer.trial.tries))
        else:
            taken_back = pointer.current
            why = "its process ended before it was ready" if ended is None else ended.reason
            pointer = take_back(pointer, why or "")
    elif pointer.trial is not None and pointer.trial.tries >= _MAX_TRIES:
        taken_back = pointer.current
        pointer = take_back(pointer, f"it was started {_MAX_TRIES} times and stopped each time before it was ready")
    if pointer.current is not None and pointer.current not in has_slot:
        pointer = msgspec.structs.replace(pointer, current=pointer.previous, previous=None, trial=None)
    if pointer.current not in has_slot or not _is_newer(pointer.current, installation):
        # nothing there, or somebody has upgraded the installation itself
        pointer = msgspec.structs.replace(pointer, current=None, previous=None, trial=None)
    return Start(pointer, pointer.current, taken_back)


def take_back(pointer: Pointer, why: str) -> Pointer:
    """Return the pointer without its current version, which is never tried again. Pure."""
    assert pointer.current is not None
    failed = dict([*pointer.failed.items(), (pointer.current, why)][-_MAX_FAILED:])
    return msgspec.structs.replace(pointer, current=pointer.previous, previous=None, trial=None, failed=failed)


def begin(pointer: Pointer, pid: int) -> Pointer:
    """Return the pointer with its trial begun by a process."""
    assert pointer.trial is not None
    return msgspec.structs.replace(
        pointer, trial=Trial(pointer.trial.tries + 1, pid, round(psutil.Process(pid).create_time(), 1))
    )


def is_tried_elsewhere(pointer: Pointer, pid: int) -> bool:
    """Whether another living process than `pid` has begun the trial, and is between its start and the data folder's lock."""
    trial = pointer.trial
    if trial is None or trial.pid in (0, pid):
        return False
    try:
        return bool(abs(psutil.Process(trial.pid).create_time() - trial.started) < 1.0)
    except psutil.Error:
        return False


def activate(folder: Path, version: str) -> None:
    """Point at the slot of a version, on trial from the next start on. Blocking. Raises UpdateBlocked, UpdateError."""
    pointer = load_pointer(folder)
    if version in pointer.failed:
        raise UpdateBlocked(f"meshnode {version} was tried here and taken back: {pointer.failed[version]}")
    if pointer.trial is not None:
        raise UpdateBlocked(f"meshnode {pointer.current} is on trial; wait until it is ready")
    save_pointer(folder, msgspec.structs.replace(pointer, current=version, previous=pointer.current, trial=Trial()))


def confirm(folder: Path) -> str | None:
    """Say that the current version has become ready; return it if it was on trial. Blocking. Raises UpdateError."""
    pointer = load_pointer(folder)
    if pointer.trial is None:
        return None
    save_pointer(folder, msgspec.structs.replace(pointer, trial=None))
    with no_space(folder):
        shutil.rmtree(folder / _KEPT_STORE, ignore_errors=True)
    return pointer.current


def keep_store(folder: Path, store: Path) -> None:
    """Copy the database aside; nothing may have it open. Blocking. Raises UpdateError."""
    kept, fresh = folder / _KEPT_STORE, folder / f"{_KEPT_STORE}.new"
    with no_space(folder):
        for old in (kept, fresh):
            shutil.rmtree(old, ignore_errors=True)
        if not store.exists():
            return
        shutil.copytree(store, fresh)
        fresh.replace(kept)


def restore_store(folder: Path, store: Path) -> None:
    """Put the database back as it was before the trial. Blocking. Raises UpdateError; then it is one of both, whole."""
    kept, spent = folder / _KEPT_STORE, folder / "store-of-trial"
    if not kept.exists():
        return
    with no_space(folder):
        shutil.rmtree(spent, ignore_errors=True)
        if store.exists():
            store.replace(spent)
        kept.replace(store)
        shutil.rmtree(spent, ignore_errors=True)


def slots_there(folder: Path, pointer: Pointer) -> frozenset[str]:
    """Return which of the versions that a pointer names have their code here."""
    named = (pointer.current, pointer.previous)
    return frozenset(each for each in named if each is not None and slot_of(folder, each).is_dir())


def _is_newer(version: str | None, installation: str) -> bool:
    try:
        return version is not None and Version(version) > Version(installation)
    except InvalidVersion as error:
        raise UpdateError(f"{version!r} is no version; delete current.json in the folder updates") from error
