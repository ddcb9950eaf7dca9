"""The ApiServer subsystem."""

from collections.abc import Sequence

import trio

from meshnode.api.application import create_app
from meshnode.api.mcp.mount import McpSurface
from meshnode.api.ports import ApiDependencies
from meshnode.api.responses.service import Responses
from meshnode.api.serving import ServingLimits, serve_api
from meshnode.supervise.subsystem import Pulse

__all__ = ["ApiServer"]


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
        mcp, responses = McpSurface(self._dependencies), Responses(self._dependencies)
        app = create_app(self._dependencies, mcp, responses)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._beat)
            nursery.start_soon(mcp.run, self._draining)
            nursery.start_soon(responses.run)
            await serve_api(app, self._listeners, self._limits, draining=self._draining, task_status=task_status)
            self._drained.set()
            await trio.sleep_forever()

    async def drain(self) -> None:
        """Accept no more and wait until open requests are done."""
        self._draining.set()
        await self._drained.wait()

    async def _beat(self) -> None:
        while True:
            self._pulse.touch()
            await trio.sleep(1)
