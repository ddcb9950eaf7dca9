"""/api/admin/status and /api/admin/shutdown."""

from quart import Response
from quart_trio import QuartTrio

from meshnode.api.operations import Operation, describes
from meshnode.api.ports import ApiDependencies
from meshnode.api.replies import json_reply

__all__ = ["add_node_routes"]


def add_node_routes(app: QuartTrio, dependencies: ApiDependencies) -> None:
    """Add the routes."""

    @app.get("/api/admin/status")
    @describes(Operation("Say how the node is."))
    async def admin_status() -> Response:
        return json_reply(dependencies.status())

    @app.post("/api/admin/shutdown")
    @describes(Operation("Stop the node.", status=202))
    async def admin_shutdown() -> Response:
        dependencies.request_shutdown()
        return json_reply({"status": "stopping"}, 202)
