"""One process becomes another version of meshnode, and the installation again: same number, same arguments, same terminal."""

import json
import os
import subprocess
import sys
from pathlib import Path

import attrs

from meshnode.update import bootstrap
from meshnode.update.pointer import slot_of
from meshnode.update.trial import Ended

__all__ = ["EXIT_RESTART", "Slot", "enter_slot", "how_trial_ended", "restart", "running_slot"]

EXIT_RESTART = 75  # of a node, inside this process: not an end, it is to start anew

_BOOT, _ENDED = "_MESHNODE_BOOT", "_MESHNODE_ENDED"  # no settings: those begin with MESHNODE_
_OURS = ("PYTHONPATH", "PYTHONSAFEPATH")


@attrs.frozen
class Slot:
    """The version that runs in this process in place of the installation."""

    version: str
    installation: str  # version of the installation


def enter_slot(folder: Path, version: str, installation: str, *, deadline: float | None) -> None:
    """Become `version`; does not return. With a `deadline`, in seconds, it is on trial."""
    slot = slot_of(folder, version)
    boot = {
        "version": version,
        "installation": installation,
        "slot": str(slot),
        "pointer": str(folder / "current.json"),
        "trial": deadline is not None,
        "deadline": deadline,
        "argv": [sys.executable, *sys.orig_argv[1:]],
        "environment": {name: os.environ.get(name) for name in _OURS},
    }
    environment = dict(os.environ) | {_BOOT: json.dumps(boot), "PYTHONSAFEPATH": "1"}
    environment.pop(_ENDED, None)
    # for the processes that the version starts; its own path is set by the bootstrap, for an isolated Python heeds no variable
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(slot), os.environ.get("PYTHONPATH"))))
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # what multiprocessing does
    _become([sys.executable, *flags, "-P", bootstrap.__file__, *sys.argv[1:]], environment)


def running_slot() -> Slot | None:
    """Return the version that this process runs in place of the installation; None in the installation itself."""
    text = os.environ.get(_BOOT)
    if text is None:
        return None
    boot = json.loads(text)
    return Slot(boot["version"], boot["installation"])


def how_trial_ended() -> tuple[Ended, int] | None:
    """Return how the trial before this start ended, if the guard says so, and the exit code it ended with. Says it once."""
    text = os.environ.pop(_ENDED, None)
    if text is None:
        return None
    said = json.loads(text)
    return Ended(said["reason"]), said["code"]


def restart() -> None:
    """Become the installation, as it was started; does not return. Nothing may be open that is not closed by itself."""
    text = os.environ.get(_BOOT)
    if text is None:
        _become([sys.executable, *sys.orig_argv[1:]], dict(os.environ))
        return
    boot = json.loads(text)
    kept = {name: value for name, value in os.environ.items() if name not in (_BOOT, *_OURS)}
    before = {name: value for name, value in boot["environment"].items() if value is not None}
    _become(boot["argv"], kept | before)


def _become(command: list[str], environment: dict[str, str]) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(command[0], command, environment)  # noqa: S606  # no shell is wanted
