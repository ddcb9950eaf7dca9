"""The ASGI application: a pure function of its dependencies."""

import secrets
from typing import Any

import msgspec
import structlog
from quart import Request, Response, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException

from meshnode import __version__
from meshnode.api import exposition
from meshnode.api.bodies import read_json
from meshnode.api.failures import Failure, describe, failure_body, failure_of
from meshnode.api.guards import Guards
from meshnode.api.openai.chat import complete_chat
from meshnode.api.openai.models import list_models, show_model
from meshnode.api.openai.schemas import ChatRequest
from meshnode.api.ports import ApiDependencies
from meshnode.errors import MeshnodeError, UnknownModel
from meshnode.flow.buckets import KeyedBuckets

__all__ = ["create_app"]

_log = structlog.get_logger(__name__)
_SECURITY = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}


class _AddModel(msgspec.Struct, forbid_unknown_fields=True):
    reference: str
    blocks: str | None = None


def create_app(dependencies: ApiDependencies) -> QuartTrio:
    """Build the application; it starts nothing and keeps nothing."""
    app = QuartTrio("meshnode")
    app.config["MAX_CONTENT_LENGTH"] = dependencies.body_limit_bytes
    app.config["RESPONSE_TIMEOUT"] = None  # our own deadlines end requests; quart's would truncate streams
    app.config["BODY_TIMEOUT"] = None  # read_json has its own
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    guards = Guards(
        dependencies.key,
        frozenset({dependencies.host.lower()}),
        KeyedBuckets(dependencies.requests_per_minute / 60, max(1.0, dependencies.requests_per_minute / 6)),
    )
    _add_guards(app, guards, dependencies)
    _add_failures(app)
    _add_public_routes(app, dependencies)
    _add_openai_routes(app, dependencies)
    _add_admin_routes(app, dependencies)
    return app


def _json(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status=status, content_type="application/json")


def _refuse(failure: Failure) -> Response:
    response = Response(failure_body(failure), status=failure.status, content_type="application/json")
    if failure.retry_after is not None:
        response.headers["Retry-After"] = str(max(1, round(failure.retry_after)))
    if failure.status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def _client(incoming: Request) -> str:
    return incoming.remote_addr or "unknown"


def _add_guards(app: QuartTrio, guards: Guards, dependencies: ApiDependencies) -> None:
    @app.before_request
    async def guard() -> Response | None:
        failure = guards.refusal(
            path=request.path,
            host=request.headers.get("Host", ""),
            origin=request.headers.get("Origin"),
            authorization=request.headers.get("Authorization"),
            client=_client(request),
        )
        return None if failure is None else _refuse(failure)

    @app.after_request
    async def finish(response: Response) -> Response:
        response.headers["x-request-id"] = request.headers.get("x-request-id", "")[:64] or secrets.token_hex(8)
        for name, value in _SECURITY.items():
            response.headers.setdefault(name, value)
        route = request.url_rule.rule if request.url_rule is not None else "unknown"
        dependencies.metrics.api_requests_total.labels(route=route, status=str(response.status_code)).inc()
        return response


def _add_failures(app: QuartTrio) -> None:
    @app.errorhandler(MeshnodeError)
    async def ours(error: MeshnodeError) -> Response:
        failure = failure_of(error)
        if failure.status == 500:
            _log.error("request failed", error=str(error), exc_info=error)
        return _refuse(failure)

    @app.errorhandler(HTTPException)
    async def http(error: HTTPException) -> Response:
        status = error.code or 500
        if status == 404:
            return _refuse(describe(404, f"there is nothing at {request.method} {request.path}"))
        if status == 405:
            return _refuse(describe(405, f"{request.path} does not take {request.method}"))
        if status == 413:
            limit = app.config["MAX_CONTENT_LENGTH"]
            return _refuse(describe(413, f"the body is larger than {limit} bytes; the limit is api.body_limit_bytes"))
        return _refuse(describe(status, error.description or error.name))

    @app.errorhandler(Exception)
    async def unexpected(error: Exception) -> Response:
        _log.error("request failed", error=str(error), exc_info=error)
        return _refuse(describe(500, "an internal error; the node's log has the details"))


def _add_public_routes(app: QuartTrio, dependencies: ApiDependencies) -> None:
    @app.get("/")
    async def root() -> Response:
        return _json({"name": "meshnode", "version": __version__, "api": "/v1", "health": "/health"})

    @app.get("/health")
    async def health() -> Response:
        return exposition.health()

    @app.get("/health/ready")
    async def ready() -> Response:
        return exposition.ready(dependencies)

    @app.get("/metrics")
    async def metrics() -> Response:
        return exposition.metrics(dependencies)


def _add_openai_routes(app: QuartTrio, dependencies: ApiDependencies) -> None:
    @app.post("/v1/chat/completions")
    async def chat() -> Response:
        body = await read_json(request, ChatRequest, timeout=dependencies.body_timeout)
        return await complete_chat(body, dependencies, client=_client(request))

    @app.get("/v1/models")
    async def models() -> Response:
        return _json(list_models(dependencies.models()))

    @app.get("/v1/models/<path:name>")
    async def model(name: str) -> Response:
        return _json(show_model(dependencies.models(), name))


def _add_admin_routes(app: QuartTrio, dependencies: ApiDependencies) -> None:
    @app.get("/api/admin/status")
    async def admin_status() -> Response:
        return _json(dependencies.status())

    @app.get("/api/admin/models")
    async def admin_models() -> Response:
        return _json({"models": dependencies.models()})

    @app.post("/api/admin/models")
    async def add_model() -> Any:  # noqa: ANN401  # quart's own view type
        body = await read_json(request, _AddModel, timeout=dependencies.body_timeout)
        return _json({"name": await dependencies.admin.add(body.reference, body.blocks)}, 201)

    @app.delete("/api/admin/models/<path:name>")
    async def remove_model(name: str) -> Response:
        if not any(name in (model.name, model.id, *model.aliases) for model in dependencies.models()):
            names = ", ".join(model.name for model in dependencies.models()) or "none"
            raise UnknownModel(f"there is no model {name!r}; there are: {names}", param="name")
        await dependencies.admin.remove(name)
        return _json({"removed": name})

    @app.post("/api/admin/shutdown")
    async def shutdown() -> Response:
        dependencies.request_shutdown()
        return _json({"status": "stopping"}, 202)
