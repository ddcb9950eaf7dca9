"""/api/admin/peers, wishlist, invitation and join: the mesh as this node sees it, and the way in."""

import msgspec
from quart import Response
from quart_trio import QuartTrio

from meshnode.api.operations import Operation, describes, takes
from meshnode.api.ports import ApiDependencies
from meshnode.api.replies import json_reply

__all__ = ["Join", "add_mesh_routes"]


class Join(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST: addresses of a node to connect to, multiaddrs with /p2p/."""

    addresses: tuple[str, ...]


def add_mesh_routes(app: QuartTrio, dependencies: ApiDependencies) -> None:
    """Add the routes."""

    @app.get("/api/admin/peers")
    @describes(Operation("List the peers."))
    async def admin_peers() -> Response:
        return json_reply({"peers": dependencies.mesh.peers()})

    @app.get("/api/admin/wishlist")
    @describes(
        Operation(
            "List the models of the mesh and of the hub: copies, targets, and why this node holds them or not; and how "
            "many seconds ago the mesh was looked at, null before the first time."
        )
    )
    async def admin_wishlist() -> Response:
        return json_reply(dependencies.wishes())

    @app.post("/api/admin/invitation")
    @describes(Operation("Make a code that leads to this node.", status=201))
    async def admin_invite() -> Response:
        return json_reply({"code": dependencies.mesh.invitation()}, 201)

    @app.post("/api/admin/join")
    @takes(Join, "Connect to a node.", timeout=dependencies.body_timeout)
    async def admin_join(body: Join) -> Response:
        return json_reply({"peer": await dependencies.mesh.join(body.addresses)})
