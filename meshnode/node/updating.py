"""Updates, connected to the rest: what the settings mean for them, what the API is told, and when a trial has succeeded."""

from collections.abc import Callable

import structlog
import trio

from meshnode import __version__
from meshnode.config.paths import DataPaths
from meshnode.config.schema import NodeConfig
from meshnode.errors import ConfigError, UpdateBlocked, UpdateError
from meshnode.flow.lanes import Lanes
from meshnode.flow.latest import Latest
from meshnode.flow.mailbox import Mailbox
from meshnode.node.channels import Channels
from meshnode.observe.metrics import Metrics
from meshnode.supervise.health import HealthBoard
from meshnode.supervise.subsystem import Pulse
from meshnode.update.checker import UpdateChecker, UpdateQuestion, UpdateResources, UpdateSettings, UpdateState
from meshnode.update.reexec import running_slot
from meshnode.update.release import decode_key
from meshnode.update.trial import confirm
from meshnode.update.updater import Publisher, Updater

__all__ = ["UpdateRequests", "check_updates", "confirm_when_ready", "updates_builder"]

_log = structlog.get_logger(__name__)


def check_updates(config: NodeConfig) -> None:
    """See to it that updates which are on can be had. Raises ConfigError."""
    updates = config.updates
    if not updates.enabled:
        return
    if updates.url is None:
        raise ConfigError("updates.enabled is true and updates.url is not set; say where the releases are")
    if len(updates.keys) < updates.threshold:
        raise ConfigError(
            f"updates.keys has {len(updates.keys)} keys and updates.threshold is {updates.threshold}; name at least as many"
        )


def updates_builder(
    config: NodeConfig,
    channels: Channels,
    lanes: Lanes,
    health: HealthBoard,
    metrics: Metrics,
    restart: Callable[[], None],
) -> Callable[[Pulse], UpdateChecker] | None:
    """Return what makes the UpdateChecker; None where updates are off, or the node is offline."""
    updates = config.updates
    if not updates.enabled or config.node.offline:
        return None
    assert updates.url is not None
    publisher = Publisher(
        updates.url, frozenset(map(decode_key, updates.keys)), int(updates.threshold), updates.channel
    )
    resources = UpdateResources(
        updater=Updater(publisher, DataPaths(config.node.data_dir).updates, _running(), lanes),
        mailbox=channels.updates,
        state=channels.update_state,
        health=health,
        is_busy=lambda: channels.offering.value.sessions > 0 or _requests(metrics) > 0,
        restart=restart,
    )
    return lambda pulse: UpdateChecker(resources, UpdateSettings(updates.interval, updates.apply), pulse)


async def confirm_when_ready(started: trio.Event, config: NodeConfig) -> None:
    """Wait for the start, and say then that the version that is on trial, if one is, has succeeded."""
    await started.wait()
    if running_slot() is None:
        return
    try:
        version = await trio.to_thread.run_sync(confirm, DataPaths(config.node.data_dir).updates)
    except UpdateError as error:  # the guard will take this version back
        _log.error("update.not_confirmed", error=str(error))
        return
    if version is not None:
        _log.info("update.confirmed", version=version)


class UpdateRequests:
    """Updates for the API, by asking the checker where there is one."""

    def __init__(
        self, config: NodeConfig, mailbox: Mailbox[UpdateQuestion, UpdateState], state: Latest[UpdateState]
    ) -> None:
        self._config = config
        self._mailbox = mailbox
        self._state = state

    def status(self) -> dict[str, object]:
        """Return what runs, what there is, and what came of it, JSON values."""
        slot, state = running_slot(), self._state.value
        release = state.available
        return {
            "enabled": self._config.updates.enabled,
            "running": _running(),
            "installation": __version__ if slot is None else slot.installation,
            "channel": self._config.updates.channel,
            "checked": None if state.checked is None else state.checked.isoformat(timespec="seconds"),
            "available": None
            if release is None
            else {
                "version": release.version,
                "sequence": release.sequence,
                "expires": release.expires.isoformat(timespec="seconds"),
            },
            "installed": state.installed,
            "problem": state.problem or self._why_off(),
            "failed": dict(state.failed),
        }

    async def check(self) -> dict[str, object]:
        """Look now and return the status. Raises UpdateError leafs; cancellation leaves the look to its end."""
        return await self._ask(UpdateQuestion.CHECK)

    async def apply(self) -> dict[str, object]:
        """Install what is newer, return the status, and restart the node. Raises UpdateError leafs, before anything changes."""
        return await self._ask(UpdateQuestion.APPLY)

    async def _ask(self, question: UpdateQuestion) -> dict[str, object]:
        why = self._why_off()
        if why is not None:
            raise UpdateBlocked(why)
        await self._mailbox.ask(question)
        return self.status()

    def _why_off(self) -> str | None:
        if not self._config.updates.enabled:
            return "updates are off; docs/updates.md says which settings turn them on"
        if self._config.node.offline:
            return "this node is offline (node.offline), so it looks for no releases"
        return None


def _requests(metrics: Metrics) -> float:
    """Return how many requests run, those too whose stages are all on peers."""
    return sum(sample.value for metric in metrics.inference_active_sessions.collect() for sample in metric.samples)


def _running() -> str:
    slot = running_slot()
    return __version__ if slot is None else slot.version
