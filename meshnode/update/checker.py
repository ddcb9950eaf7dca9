"""The UpdateChecker: looks for a release every hour, says when there is one, and installs it when it may or is told to.

Whatever goes wrong is a condition with a sentence, and the node goes on as it is.
"""

import datetime
import enum
import random
from collections.abc import Callable, Mapping

import attrs
import structlog
import trio

from meshnode.errors import MeshnodeError, UpdateBlocked
from meshnode.flow.latest import Latest
from meshnode.flow.mailbox import Letter, Mailbox
from meshnode.supervise.health import HealthBoard
from meshnode.supervise.subsystem import Pulse
from meshnode.update.release import Release
from meshnode.update.updater import Updater

__all__ = ["UpdateChecker", "UpdateQuestion", "UpdateResources", "UpdateSettings", "UpdateState"]

_NAME = "UpdateChecker"
_PULSE_EVERY = 5.0  # seconds
_AVAILABLE, _PROBLEM, _TAKEN_BACK = "update_available", "update_problem", "update_taken_back"
_log = structlog.get_logger(__name__)


class UpdateQuestion(enum.Enum):
    """What may be asked of the checker."""

    CHECK = "check"  # look now
    APPLY = "apply"  # look, install what is newer, and restart into it


@attrs.frozen
class UpdateState:
    """What the last look found."""

    checked: datetime.datetime | None = None  # when the last look ended, well or not
    available: Release | None = None  # newer than what runs
    problem: str | None = None  # why the last look, or the last attempt to install, came to nothing
    failed: Mapping[str, str] = attrs.field(factory=dict)  # versions that were taken back, and why
    installed: str | None = None  # the version that the restart which is under way leads to


@attrs.frozen
class UpdateSettings:
    """When to act. Times in seconds."""

    interval: float
    apply: bool  # of its own accord
    first: float = 20.0  # to the first look
    idle_check: float = 30.0  # between two looks at whether anything runs


@attrs.frozen(eq=False)
class UpdateResources:
    """What outlives an incarnation."""

    updater: Updater
    mailbox: Mailbox[UpdateQuestion, UpdateState]
    state: Latest[UpdateState]
    health: HealthBoard
    is_busy: Callable[[], bool]  # whether sessions run here
    restart: Callable[[], None]  # drain, stop, and start anew


@attrs.define(eq=False)
class UpdateChecker:
    """One incarnation."""

    _resources: UpdateResources
    _settings: UpdateSettings
    _pulse: Pulse
    _turn: trio.Lock = attrs.field(factory=trio.Lock, init=False)  # one look or installation at a time

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look and answer until cancelled, which leaves no update half done."""
        with self._resources.mailbox.serve() as letters:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._keep_pulse)
                await self._remember()
                nursery.start_soon(self._keep_looking)
                task_status.started()
                async for letter in letters:
                    await self._answer(letter)

    async def drain(self) -> None:
        """Nothing to do: what is being fetched may be cancelled."""

    async def _keep_pulse(self) -> None:
        while True:
            self._pulse.touch()
            await trio.sleep(_PULSE_EVERY)

    async def _remember(self) -> None:
        """Clear away what earlier runs left, and say what was taken back, perhaps by this very start."""
        shared = self._resources
        try:
            await shared.updater.tidy()
            failed = await shared.updater.failed()
        except MeshnodeError as error:
            self._note_problem(error)
            return
        self._tell(failed=failed)
        if failed:
            self._warn(list(failed)[-1])

    async def _keep_looking(self) -> None:
        settings = self._settings
        await trio.sleep(settings.first)
        while True:
            try:
                async with self._turn:
                    release = await self._look()
                if release is not None and settings.apply and release.version not in self._resources.state.value.failed:
                    while self._resources.is_busy():  # noqa: ASYNC110  # what tells of it is coarser than this
                        await trio.sleep(settings.idle_check)
                    async with self._turn:
                        await self._install(release)
            except MeshnodeError as error:
                self._note_problem(error)
            await trio.sleep(settings.interval * random.uniform(0.9, 1.1))  # noqa: S311  # not in step with others

    async def _answer(self, letter: Letter[UpdateQuestion, UpdateState]) -> None:
        state = self._resources.state
        try:
            async with self._turn:
                release = await self._look()
                if letter.question is UpdateQuestion.APPLY and release is None:
                    newest = self._resources.updater.running
                    letter.refuse(UpdateBlocked(f"there is nothing to apply: meshnode {newest} is the newest"))
                elif letter.question is UpdateQuestion.APPLY and release is not None:
                    await self._install(release, lambda: letter.answer(state.value))
        except UpdateBlocked as error:  # whoever asked hears it; nobody else need
            letter.refuse(error)
        except MeshnodeError as error:
            self._note_problem(error)
            letter.refuse(error)
        else:
            letter.answer(state.value)

    async def _look(self) -> Release | None:
        """Look once, say what there is, and return it if it is newer."""
        shared = self._resources
        release = (await shared.updater.look()).release
        newer = release if shared.updater.is_newer(release) else None
        failed = await shared.updater.failed()
        self._tell(checked=shared.updater.now(), available=newer, failed=failed, problem=None)
        for code in (_PROBLEM, _AVAILABLE, _TAKEN_BACK):
            shared.health.clear_condition(code, _NAME)
        if newer is not None and newer.version in failed:
            self._warn(newer.version)
        elif newer is not None:
            _log.info("update.available", version=newer.version, sequence=newer.sequence)
            if not self._settings.apply:
                text = f"meshnode {newer.version} is there; `meshnode update apply` installs it and restarts the node"
                shared.health.raise_condition(_AVAILABLE, _NAME, text)
        return newer

    async def _install(self, release: Release, tell: Callable[[], None] = lambda: None) -> None:
        shared = self._resources
        await shared.updater.install(release)
        self._tell(installed=release.version)
        shared.health.clear_condition(_AVAILABLE, _NAME)
        _log.info("update.installed", version=release.version)
        tell()  # before the stop begins, so that whoever asked hears it
        shared.restart()

    def _warn(self, version: str) -> None:
        shared = self._resources
        text = f"meshnode {version} was tried and taken back: {shared.state.value.failed[version]}"
        shared.health.raise_condition(_TAKEN_BACK, _NAME, f"{text}; the next release will be tried")

    def _note_problem(self, error: MeshnodeError) -> None:
        """Nothing changes: what is running goes on, and the next look may go better."""
        shared = self._resources
        self._tell(checked=shared.updater.now(), problem=str(error))
        _log.warning("update.problem", error=str(error))
        shared.health.raise_condition(_PROBLEM, _NAME, f"no update: {error}")

    def _tell(self, **changes: object) -> None:
        state = self._resources.state
        state.set(attrs.evolve(state.value, **changes))  # type: ignore[arg-type]  # fields of UpdateState
