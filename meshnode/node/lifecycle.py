"""A running tree and the world around it: signals come in; readiness, pulses, conditions and the stop go out."""

import signal
from collections.abc import AsyncIterator

import attrs
import structlog
import trio

from meshnode.flow.periodic import Ticker
from meshnode.node.notify import ServiceManager
from meshnode.supervise.health import HealthBoard
from meshnode.supervise.supervisor import Supervisor

__all__ = ["Restart", "run_tree"]

_STATUS_PERIOD = 5.0  # seconds between looks at the conditions when no watchdog sets the pace

_log = structlog.get_logger(__name__)


@attrs.define(eq=False)
class Restart:
    """Whether the stop that is under way is to lead to another start of this process."""

    supervisor: Supervisor
    wanted: bool = attrs.field(default=False, init=False)

    def request(self) -> None:
        """Stop as at a signal, and start anew; a signal that comes meanwhile means the end."""
        self.wanted = True
        self.supervisor.request_stop()


async def run_tree(
    supervisor: Supervisor,
    health: HealthBoard,
    manager: ServiceManager,
    *,
    url: str,
    signals: AsyncIterator[int],
    restart: Restart | None = None,
) -> None:
    """Run the supervisor until it has stopped, and keep the service manager informed.

    The first signal begins the stop with its drain times, the second ends all draining. Raises what the supervisor
    raises, in a group. Cancellation stops the tree in order first.
    """
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_obey, supervisor, signals, restart)
        nursery.start_soon(_tell_of_start, supervisor, manager, url)
        nursery.start_soon(_tell_of_stop, supervisor, manager, restart)
        nursery.start_soon(_beat, supervisor, health, manager, url)
        await supervisor.run()
        nursery.cancel_scope.cancel()


async def _obey(supervisor: Supervisor, signals: AsyncIterator[int], restart: Restart | None) -> None:
    async for number in signals:
        _log.info("asked to stop", signal=signal.Signals(number).name)
        if restart is not None:
            restart.wanted = False
        supervisor.request_stop()


async def _tell_of_start(supervisor: Supervisor, manager: ServiceManager, url: str) -> None:
    await supervisor.started.wait()
    manager.ready(f"serving on {url}")
    _log.info("node is serving", url=url)


async def _tell_of_stop(supervisor: Supervisor, manager: ServiceManager, restart: Restart | None) -> None:
    await supervisor.stopping.wait()
    if restart is not None and restart.wanted:
        manager.restarting()
    else:
        manager.stopping()


async def _beat(supervisor: Supervisor, health: HealthBoard, manager: ServiceManager, url: str) -> None:
    """Send WATCHDOG=1 while the critical pulses beat, in the manager's rhythm, and the conditions when they change."""
    await supervisor.started.wait()
    period = _STATUS_PERIOD if manager.watchdog_interval is None else manager.watchdog_interval / 3
    told, beating = f"serving on {url}", True
    async for _ in Ticker(period):
        was_beating, beating = beating, supervisor.critical_pulses_beat()
        if beating:
            manager.watchdog()
        elif was_beating:
            _log.error("a critical subsystem is silent; the service manager hears no more of us until it works")
        conditions = "; ".join(condition.text for condition in health.conditions())
        status = f"degraded: {conditions}" if conditions else f"serving on {url}"
        if status != told and not supervisor.stopping.is_set():
            manager.status(status)
            told = status
