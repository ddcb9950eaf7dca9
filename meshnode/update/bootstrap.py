"""Runs another version of meshnode in this process, and guards it while it is on trial.

Started as a file, `python -P bootstrap.py run ...`, by `reexec.py` of the installation, so it may import nothing of meshnode:
what is imported under that name from here on is the other version. When that one fails its trial, or is not ready in time,
this puts the installation back in its place: same process, same number, so a service manager sees no end.
"""

import json
import os
import runpy
import signal
import sys
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__: list[str] = []

_LOOK_EVERY = 0.5  # seconds
_STOPPED = (0, 130)  # exit codes of a node that was asked to end


def _is_on_trial(boot: Mapping[str, Any]) -> bool:
    """Whether the version has not said yet that it is ready."""
    try:
        pointer = json.loads(Path(boot["pointer"]).read_bytes())
    except (OSError, ValueError):
        return True
    return pointer.get("current") == boot["version"] and pointer.get("trial") is not None


def _go_back(boot: Mapping[str, Any], reason: str | None, code: int = 0) -> None:
    """Become the installation again, which decides what that means."""
    environment = {name: text for name, text in os.environ.items() if name != "_MESHNODE_BOOT"}
    for name, text in boot["environment"].items():
        if text is None:
            environment.pop(name, None)
        else:
            environment[name] = text
    environment["_MESHNODE_ENDED"] = json.dumps({"reason": reason, "code": code})
    sys.stderr.flush()
    os.execve(boot["argv"][0], boot["argv"], environment)  # noqa: S606  # no shell is wanted


def _guard(boot: Mapping[str, Any], done: threading.Event) -> None:
    waited = 0.0
    while _is_on_trial(boot):
        if done.wait(_LOOK_EVERY):
            return
        waited += _LOOK_EVERY
        if waited >= boot["deadline"] and _is_on_trial(boot):
            _go_back(boot, f"it was not ready within {boot['deadline']:g} s")


def _stop(*_: object) -> None:
    sys.exit(0)


def main() -> None:
    """Run what the environment names."""
    boot = json.loads(os.environ["_MESHNODE_BOOT"])
    sys.path.insert(0, boot["slot"])
    done = threading.Event()
    if boot["trial"]:
        signal.signal(signal.SIGTERM, _stop)  # until the node listens itself
        threading.Thread(target=_guard, args=(boot, done), name="update-guard", daemon=True).start()
    reason, code = "it returned instead of running", 1
    try:
        runpy.run_module("meshnode", run_name="__main__", alter_sys=True)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
        reason = f"it ended with status {code} before it was ready"
        if not boot["trial"] or not _is_on_trial(boot):
            raise
    except KeyboardInterrupt:
        code = 130
        if not boot["trial"] or not _is_on_trial(boot):
            raise
    except BaseException as error:
        if not boot["trial"] or not _is_on_trial(boot):
            raise
        traceback.print_exc()
        reason = f"it could not start: {type(error).__name__}: {error}"
    done.set()
    if boot["trial"] and _is_on_trial(boot):
        _go_back(boot, None if code in _STOPPED else reason, code)


if __name__ == "__main__":
    main()
