"""The ApiServer subsystem."""

from collections.abc import Sequence

import attrs
import trio

from meshnode.api.accounts import accounted
from meshnode.api.application import create_app
from meshnode.api.closing import Closing
from meshnode.api.mcp.mount import McpSurface
from meshnode.api.ports import ApiDependencies
from meshnode.api.responses.service import Responses
from meshnode.api.serving import ServingLimits, serve_api
from meshnode.supervise.subsystem import Pulse

__all__ = ["ApiServer"]

_TELLING = 0.2  # seconds for the last words of a stream


class ApiServer:
    """Serves HTTP on listeners that the composition root opened, so that a port in use is known before anything starts."""

    def __init__(
        self,
        dependencies: ApiDependencies,
        listeners: Sequence[trio.SocketListener],
        limits: ServingLimits,
        pulse: Pulse,
    ) -> None:
        self._dependencies = dependencies
        self._listeners = listeners
        self._limits = limits
        self._pulse = pulse
        self._draining = trio.Event()
        self._drained = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled or drained. Cancellation closes every connection at once."""
        closing = Closing(self._dependencies.generate)
        dependencies = attrs.evolve(self._dependencies, generate=accounted(closing.generate))
        mcp, responses = McpSurface(dependencies), Responses(dependencies)
        app = create_app(dependencies, mcp, responses)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._beat)
            nursery.start_soon(self._end_in_time, closing)
            nursery.start_soon(mcp.run, self._draining)
            nursery.start_soon(responses.run)
            await serve_api(app, self._listeners, self._limits, draining=self._draining, task_status=task_status)
            self._drained.set()
            await trio.sleep_forever()

    async def drain(self) -> None:
        """Accept no more and wait until open requests are done."""
        self._draining.set()
        await self._drained.wait()

    async def _end_in_time(self, closing: Closing) -> None:
        """Tell those whose answers outlive the drain, while their connections still stand."""
        await self._draining.wait()
        await trio.sleep(max(0.0, self._limits.graceful_timeout * 0.9 - _TELLING))
        closing.end()

    async def _beat(self) -> None:
        while True:
            self._pulse.touch()
            await trio.sleep(1)
