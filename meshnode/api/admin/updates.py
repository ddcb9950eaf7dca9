"""/api/admin/updates: new versions of the node itself."""

from quart import Response
from quart_trio import QuartTrio

from meshnode.api.operations import Operation, describes
from meshnode.api.ports import UpdateAdmin
from meshnode.api.replies import json_reply

__all__ = ["add_update_routes"]


def add_update_routes(app: QuartTrio, updates: UpdateAdmin) -> None:
    """Add the routes."""

    @app.get("/api/admin/updates")
    @describes(Operation("Say which version runs, which one there is, and what came of the last look."))
    async def admin_updates() -> Response:
        return json_reply(updates.status())

    @app.post("/api/admin/updates/check")
    @describes(Operation("Look for a release now."))
    async def admin_check_updates() -> Response:
        return json_reply(await updates.check())

    @app.post("/api/admin/updates/apply")
    @describes(Operation("Install the release that is newer, and restart the node.", status=202))
    async def admin_apply_update() -> Response:
        return json_reply(await updates.apply(), 202)
