"""The ASGI application: a pure function of its dependencies."""

import structlog
from quart import Response, g, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from meshnode.api.accounts import own_account
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
from meshnode.api.heads import must_close
from meshnode.api.mcp.mount import McpMount, McpSurface
from meshnode.api.ollama.routes import add_ollama_routes
from meshnode.api.openai.routes import add_openai_routes
from meshnode.api.openapi import add_openapi_route
from meshnode.api.ports import ApiDependencies
from meshnode.api.replies import refusal_reply
from meshnode.api.request_log import RequestLog
from meshnode.api.responses.routes import add_response_routes
from meshnode.api.responses.service import Responses
from meshnode.api.serving import HTTPConnection
from meshnode.errors import MeshnodeError
from meshnode.flow.buckets import KeyedBuckets

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
    mount = McpMount(app.asgi_app, guards, mcp, dependencies)
    quiet = OPEN_PATHS | pages | {"/metrics"}
    app.asgi_app = RequestLog(mount, dependencies.metrics, quiet)  # type: ignore[method-assign]  # Quart's way to put one in front
    _add_guards(app, guards)
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


def _add_guards(app: QuartTrio, guards: Guards) -> None:
    @app.before_request
    async def guard() -> Response | None:
        account = own_account()
        g.request = account.id
        if request.url_rule is not None:
            account.endpoint = request.url_rule.rule
        failure = guards.refusal(path=request.path, headers=request.headers, client=_client())
        return None if failure is None else _refuse(failure)


def _refuse(failure: Failure, cause: Exception | None = None) -> Response:
    own_account().fail(failure)
    if failure.status == 500 and cause is not None:
        _log.error("a request failed", id=g.request, exc_info=cause)
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
