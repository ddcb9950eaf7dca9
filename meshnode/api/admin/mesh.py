"""/api/admin/peers, /api/admin/invitation, /api/admin/join: the mesh as this node sees it, and the way in."""

import msgspec
from quart import Response, request
from quart_trio import QuartTrio

from meshnode.api.bodies import read_json
from meshnode.api.ports import ApiDependencies
from meshnode.api.replies import json_reply

__all__ = ["Join", "add_mesh_routes"]


class Join(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST: addresses of a node to connect to, multiaddrs with /p2p/."""

    addresses: tuple[str, ...]


def add_mesh_routes(app: QuartTrio, dependencies: ApiDependencies) -> None:
    """Add the routes."""

    @app.get("/api/admin/peers")
    async def admin_peers() -> Response:
        return json_reply({"peers": dependencies.mesh.peers()})

    @app.post("/api/admin/invitation")
    async def admin_invite() -> Response:
        return json_reply({"code": dependencies.mesh.invitation()}, 201)

    @app.post("/api/admin/join")
    async def admin_join() -> Response:
        body = await read_json(request, Join, timeout=dependencies.body_timeout)
        return json_reply({"peer": await dependencies.mesh.join(body.addresses)})
