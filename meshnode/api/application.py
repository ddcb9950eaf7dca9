"""The ASGI application: a pure function of its dependencies."""

import structlog
import trio
from quart import Response, g, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from meshnode.api.admin.mesh import add_mesh_routes
from meshnode.api.admin.models import add_model_routes
from meshnode.api.admin.node import add_node_routes
from meshnode.api.admin.updates import add_update_routes
from meshnode.api.anthropic.routes import add_anthropic_routes
from meshnode.api.anthropic.version import speaks_anthropic
from meshnode.api.bodies import too_large
from meshnode.api.exposition import OPEN_PATHS, add_public_routes
from meshnode.api.failures import Failure, describe, failure_of
from meshnode.api.guards import Guards
from meshnode.api.heads import common_headers, must_close
from meshnode.api.mcp.mount import McpMount, McpSurface
from meshnode.api.ollama.routes import add_ollama_routes
from meshnode.api.openai.routes import add_openai_routes
from meshnode.api.openapi import add_openapi_route
from meshnode.api.ports import ApiDependencies
from meshnode.api.replies import refusal_reply
from meshnode.api.responses.routes import add_response_routes
from meshnode.api.responses.service import Responses
from meshnode.api.serving import HTTPConnection
from meshnode.errors import MeshnodeError
from meshnode.flow.buckets import KeyedBuckets
from meshnode.types.ids import new_request_id

__all__ = ["create_app"]

_log = structlog.get_logger(__name__)


def create_app(dependencies: ApiDependencies, mcp: McpSurface, responses: Responses) -> QuartTrio:
    """Build the application; it starts nothing and keeps nothing."""
    app = QuartTrio("meshnode", static_folder=None)
    app.asgi_http_class = HTTPConnection
    app.config["MAX_CONTENT_LENGTH"] = dependencies.body_limit_bytes
    app.config["BODY_TIMEOUT"] = None  # read_json has its own
    app.config["RESPONSE_TIMEOUT"] = None  # our own deadlines end requests; quart's would truncate a long answer
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    pages = dependencies.pages(app)
    guards = _guards(dependencies, pages)
    app.asgi_app = McpMount(app.asgi_app, guards, mcp, dependencies)  # type: ignore[method-assign]  # Quart's way to put one in front
    _add_guards(app, dependencies, guards)
    _add_failures(app)
    add_public_routes(app, dependencies)
    add_openai_routes(app, dependencies)
    add_anthropic_routes(app, dependencies)
    add_response_routes(app, dependencies, responses)
    add_ollama_routes(app, dependencies)
    add_model_routes(app, dependencies)
    add_node_routes(app, dependencies)
    add_mesh_routes(app, dependencies)
    if dependencies.updates is not None:
        add_update_routes(app, dependencies.updates)
    add_openapi_route(app, pages)
    return app


def _guards(dependencies: ApiDependencies, pages: frozenset[str]) -> Guards:
    per_minute = dependencies.requests_per_minute
    buckets = KeyedBuckets(per_minute / 60, max(1.0, per_minute / 6))  # ten seconds' worth at once
    return Guards(dependencies.key, frozenset({dependencies.host.lower()}), buckets, OPEN_PATHS | pages)


def _add_guards(app: QuartTrio, dependencies: ApiDependencies, guards: Guards) -> None:
    @app.before_request
    async def guard() -> Response | None:
        g.request, g.began = new_request_id(), trio.current_time()
        failure = guards.refusal(path=request.path, headers=request.headers, client=_client())
        return None if failure is None else _refuse(failure)

    @app.after_request
    async def finish(response: Response) -> Response:
        for name, value in common_headers(g.request).items():
            response.headers.setdefault(name, value)
        route = request.url_rule.rule if request.url_rule is not None else "unknown"
        dependencies.metrics.api_requests_total.labels(route=route, status=str(response.status_code)).inc()
        seconds = round(trio.current_time() - g.began, 4)  # of a stream: until its head
        _log.debug("answered", request=g.request, route=route, status=response.status_code, seconds=seconds)
        return response


def _refuse(failure: Failure, cause: Exception | None = None) -> Response:
    """Refuse, and log it: at error what is a bug, at debug what a stranger could fill the log with."""
    log = _log.error if failure.status == 500 else _log.debug if failure.status in (401, 429) else _log.info
    trace = {"exc_info": cause} if failure.status == 500 and cause is not None else {}
    facts = {"request": g.request, "method": request.method, "path": request.path[:200], "client": _client()}
    log("refused", status=failure.status, code=failure.code, reason=failure.message[:500], **facts, **trace)
    reply = refusal_reply(failure, request.path, g.request, is_anthropic=speaks_anthropic(request.headers))
    if must_close(failure.status, request.method, request.http_version):
        reply.headers["Connection"] = "close"
    return reply


def _client() -> str:
    return request.remote_addr or "unknown"


def _add_failures(app: QuartTrio) -> None:
    @app.errorhandler(MeshnodeError)
    async def ours(error: MeshnodeError) -> Response:
        return _refuse(failure_of(error), error)

    @app.errorhandler(HTTPException)
    async def http(error: HTTPException) -> Response:
        response = _refuse(describe(error.code or 500, _sentence(app, error)), error)
        if isinstance(error, MethodNotAllowed) and error.valid_methods:
            response.headers["Allow"] = ", ".join(sorted(error.valid_methods))
        return response

    @app.errorhandler(Exception)
    async def unexpected(error: Exception) -> Response:
        return _refuse(describe(500, "an internal error; the node's log has the details"), error)


def _sentence(app: QuartTrio, error: HTTPException) -> str:
    if error.code == 404:
        return f"there is nothing at {request.method} {request.path[:200]}"
    if error.code == 405:
        return f"{request.path} does not take {request.method}"
    if error.code == 413:
        return too_large(app.config["MAX_CONTENT_LENGTH"])
    return error.description or error.name
