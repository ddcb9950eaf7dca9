"""The first thing that `meshnode run` does where updates are on: find out which version is to run, and become it."""

import os

import structlog

from meshnode import __version__
from meshnode.config.loading import LoadedConfig
from meshnode.errors import UpdateError
from meshnode.node.data_folder import hold_data_folder
from meshnode.observe.logging import configure_logging
from meshnode.update.pointer import load_pointer, save_pointer
from meshnode.update.reexec import enter_slot, how_trial_ended, running_slot
from meshnode.update.trial import begin, choose, is_tried_elsewhere, keep_store, restore_store, slots_there

__all__ = ["boot"]

_log = structlog.get_logger(__name__)


def boot(loaded: LoadedConfig) -> int | None:
    """Become the version that is to run, which does not return; None where that is this one.

    Returns an exit code where a version on trial was asked to stop. Raises ConfigError when another node runs on the data
    folder. Nothing that is wrong with an update keeps the installation from running.
    """
    if running_slot() is not None:
        return None
    told = how_trial_ended()
    configure_logging(
        loaded.config.log.level, json={"auto": None, "text": False, "json": True}[loaded.config.log.format]
    )
    with hold_data_folder(loaded.config.node.data_dir) as paths:
        folder = paths.updates
        try:
            pointer = load_pointer(folder)
            if is_tried_elsewhere(pointer, os.getpid()):
                return None  # it will hold the folder in a moment, and we shall be told so
            start = choose(
                pointer,
                installation=__version__,
                ended=None if told is None else told[0],
                has_slot=slots_there(folder, pointer),
            )
            stopped = told is not None and told[0].reason is None
            if start.taken_back is not None or stopped:
                restore_store(folder, paths.store)  # what was written by a version that was never ready
            if start.taken_back is not None:
                _log.error(
                    f"meshnode {start.taken_back} was taken back: {start.pointer.failed[start.taken_back]}",
                    running=start.version or __version__,
                )
            chosen, deadline = start.pointer, None
            if chosen.trial is not None and not stopped:
                keep_store(folder, paths.store)
                chosen, deadline = begin(chosen, os.getpid()), loaded.config.updates.ready_timeout
            if chosen != pointer:
                save_pointer(folder, chosen)
        except UpdateError as error:
            _log.error(f"the installation runs, and no other version: {error}")
            return None
    if told is not None and stopped:
        return told[1]
    if start.version is not None:
        _log.info(f"meshnode {start.version} runs in place of {__version__}", on_trial=deadline is not None)
        enter_slot(folder, start.version, __version__, deadline=deadline)
    return None
