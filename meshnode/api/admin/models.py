"""/api/admin/models: list, add, remove."""

import attrs
import msgspec
from quart import Response, request
from quart_trio import QuartTrio

from meshnode.api.operations import Operation, describes, takes
from meshnode.api.ports import ApiDependencies
from meshnode.api.replies import json_reply
from meshnode.errors import RequestError, UnknownModel

__all__ = ["AddModel", "add_model_routes"]


class AddModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST: which model, and which of its blocks (`START:END`, all of them if null).

    With `spread`, a model of a hub is divided among the nodes that give room, each of which fetches a share of it.
    """

    reference: str
    blocks: str | None = None
    spread: bool = False


class ExportModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST: which model, and the absolute path of a folder."""

    name: str
    folder: str


def add_model_routes(app: QuartTrio, dependencies: ApiDependencies) -> None:
    """Add the routes."""

    @app.get("/api/admin/models")
    @describes(Operation("List the models, and how far each is."))
    async def admin_list_models() -> Response:
        return json_reply({"models": dependencies.models()})

    @app.post("/api/admin/models")
    @takes(AddModel, "Acquire a model.", timeout=dependencies.body_timeout, status=201)
    async def admin_add_model(body: AddModel) -> Response:
        added = await dependencies.admin.add(body.reference, body.blocks, spread=body.spread)
        return json_reply(attrs.asdict(added), 201)

    @app.post("/api/admin/models/export")
    @takes(
        ExportModel, "Write what is here of a model into a folder of this machine.", timeout=dependencies.body_timeout
    )
    async def admin_export_model(body: ExportModel) -> Response:
        return json_reply({"name": await dependencies.admin.export(body.name, body.folder), "folder": body.folder})

    @app.delete("/api/admin/models/<path:name>")
    @describes(
        Operation(
            "Remove a model; what no other node of the mesh is known to have, only by force.",
            query={"force": {"type": "boolean", "default": False}},
        )
    )
    async def admin_remove_model(name: str) -> Response:
        force = _flag("force")
        if not any(name in (model.name, model.id, *model.aliases) for model in dependencies.models()):
            names = ", ".join(model.name for model in dependencies.models()) or "none"
            raise UnknownModel(f"there is no model {name!r}; there are: {names}", param="name")
        await dependencies.admin.remove(name, force=force)
        return json_reply({"removed": name})


def _flag(name: str) -> bool:
    """Return the one parameter that the query may have. Raises RequestError for another, and for a value that is none."""
    if unknown := next((each for each in request.args if each != name), None):
        raise RequestError(f"there is no query parameter {unknown[:80]!r}; there is {name}", param=unknown[:80])
    value = request.args.get(name, "false")
    if value not in ("true", "1", "false", "0"):
        raise RequestError(f"{name}: must be true or false", param=name)
    return value in ("true", "1")
