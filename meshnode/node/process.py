"""The process around a node: one trio loop, the signals that end it, and the exit code that says how it went."""

import os
import signal
import sys
from functools import partial

import structlog
import trio

from meshnode.config.loading import LoadedConfig
from meshnode.errors import ConfigError, Fatal, StoreError
from meshnode.node.assemble import open_node
from meshnode.node.audience import Screen, inform
from meshnode.node.browser import open_page, page_address, should_open
from meshnode.node.lifecycle import run_tree
from meshnode.node.notify import ServiceManager
from meshnode.node.updating import confirm_when_ready
from meshnode.observe.logging import configure_logging
from meshnode.observe.loop_stalls import LoopStalls
from meshnode.observe.metrics import Metrics
from meshnode.supervise.causes import describe, leaves
from meshnode.supervise.stuck_loop import StuckLoop
from meshnode.supervise.subsystem import SubsystemFailed
from meshnode.supervise.watchdog import STUCK_EXIT_CODE, ShutdownWatchdog
from meshnode.update.reexec import EXIT_RESTART

__all__ = ["EXIT_CONFIGURATION", "EXIT_INTERRUPTED", "EXIT_SUBSYSTEM", "exit_code_of", "run_node"]

EXIT_CONFIGURATION = 64  # a setting, the data folder or the port: starting again does not help
EXIT_SUBSYSTEM = 69  # a critical subsystem failed for good
EXIT_INTERRUPTED = 130  # Ctrl-C in the moment before signals are listened to

_log = structlog.get_logger(__name__)


def run_node(loaded: LoadedConfig, screen: Screen | None = None) -> int:
    """Run a node until it is asked to stop, and return the exit code: 0, 64 configuration, 69 subsystem, 70 stuck or a bug.

    EXIT_RESTART means that the process is to start anew, for an update has been installed.
    With a `screen` a person is told how far it is.
    """
    chosen = {"auto": None, "text": False, "json": True}[loaded.config.log.format]
    configure_logging(loaded.config.log.level, json=chosen, stream=None if screen is None else screen.log)
    metrics, watchdog = Metrics(), ShutdownWatchdog()
    try:
        restart = trio.run(
            partial(_serve, loaded, screen, metrics=metrics, watchdog=watchdog),
            instruments=[LoopStalls(metrics.supervise_loop_stalls_total)],
            restrict_keyboard_interrupt_to_checkpoints=True,
        )
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except Exception as error:  # noqa: BLE001  # the process's rim
        return _explain(error)
    finally:
        watchdog.disarm()
    _log.info("node has stopped")
    return EXIT_RESTART if restart else 0


async def _serve(loaded: LoadedConfig, screen: Screen | None, *, metrics: Metrics, watchdog: ShutdownWatchdog) -> bool:
    """Run the node, and return whether it is to start anew."""
    manager = ServiceManager.from_environment(os.environ)
    wants_browser, has_terminal = loaded.config.api.open_browser, sys.stdout.isatty()
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with (
            open_node(loaded, metrics=metrics, watchdog=watchdog) as node,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(StuckLoop().run)
            nursery.start_soon(node.executors.watch)
            nursery.start_soon(confirm_when_ready, node.supervisor.started, loaded.config)
            if screen is not None:
                nursery.start_soon(inform, screen, node.supervisor.started, node.view)
            if should_open(wants_browser, has_terminal=has_terminal, env=os.environ, platform=sys.platform):
                issue = node.dashboard.tickets.issue
                nursery.start_soon(open_page, node.supervisor.started, lambda: page_address(node.view.url, issue()))
            await run_tree(
                node.supervisor, node.health, manager, url=node.view.url, signals=signals, restart=node.restart
            )
            nursery.cancel_scope.cancel()
    if node.restart.wanted:
        manager.watchdog()  # what starts now has the manager's whole patience
    return node.restart.wanted


def exit_code_of(error: BaseException) -> int:
    """Return the exit code for what ended the loop; the gravest cause in a group decides."""
    causes = list(leaves(error))
    fatal = next((cause for cause in causes if isinstance(cause, Fatal)), None)
    if fatal is not None:
        return fatal.exit_code
    if any(isinstance(cause, SubsystemFailed) for cause in causes):
        return EXIT_SUBSYSTEM
    if all(isinstance(cause, ConfigError | StoreError) for cause in causes):
        return EXIT_CONFIGURATION
    return STUCK_EXIT_CODE


def _explain(error: BaseException) -> int:
    """Say in one line why the node ends; only a bug gets its traceback."""
    code = exit_code_of(error)
    known = all(isinstance(cause, ConfigError | StoreError | SubsystemFailed | Fatal) for cause in leaves(error))
    text = "; ".join(str(cause) for cause in leaves(error)) if known else describe(error)
    if known and sys.stderr.isatty():
        sys.stderr.write(f"meshnode: {text}\n")
    else:
        _log.error(text, exit_code=code, exc_info=None if known else error)
    return code
