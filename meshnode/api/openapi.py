"""The OpenAPI document: made of the application's own routes and of the types that decode their bodies, so it cannot drift."""

import re
from collections.abc import Mapping
from typing import Any

import msgspec
from quart import Response
from quart_trio import QuartTrio
from werkzeug.routing import Rule

from meshnode import __version__
from meshnode.api.exposition import OPEN_PATHS
from meshnode.api.failures import Failure
from meshnode.api.operations import JSON, Operation, describes, operation_of
from meshnode.api.replies import error_body, json_reply

__all__ = ["add_openapi_route", "describe_api"]

_REFERENCE = "#/components/schemas/{name}"
_VARIABLE = re.compile(r"<(?:\w+:)?(\w+)>")
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")  # HEAD goes with GET
_TAGS = {"/v1/messages": "Anthropic", "/v1/": "OpenAI", "/api/admin/": "node", "/api/": "Ollama", "/": "node"}
_ABOUT = (
    "OpenAI's, Anthropic's and Ollama's interfaces, and the node's own. MCP is served at /mcp and describes itself. "
    "Fields that are not in a schema are refused by name."
)


def add_openapi_route(app: QuartTrio, pages: frozenset[str]) -> None:
    """Add the document's path. `pages` are paths that are no part of the API."""

    @app.get("/openapi.json")
    @describes(Operation("This document."))
    async def openapi() -> Response:
        return json_reply(describe_api(app, pages))


def describe_api(app: QuartTrio, pages: frozenset[str]) -> dict[str, Any]:
    """Return the document."""
    found = [
        (rule, method, operation_of(app.view_functions[rule.endpoint]) or Operation(rule.endpoint.replace("_", " ")))
        for rule in app.url_map.iter_rules()
        if rule.rule not in pages
        for method in _METHODS
        if method in (rule.methods or ())
    ]
    bodies = list(dict.fromkeys(operation.body for _, _, operation in found if operation.body is not None))
    schemas, components = msgspec.json.schema_components(bodies, ref_template=_REFERENCE)
    of_body = dict(zip(bodies, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for rule, method, operation in found:
        body = None if operation.body is None else of_body[operation.body]
        paths.setdefault(_VARIABLE.sub(r"{\1}", rule.rule), {})[method.lower()] = _described(rule, operation, body)
    return {
        "openapi": "3.1.0",
        "info": {"title": "meshnode", "version": __version__, "description": _ABOUT, "license": {"name": "Apache-2.0"}},
        "security": [{"key": []}],
        "paths": dict(sorted(paths.items())),
        "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}, "schemas": components},
    }


def _described(rule: Rule, operation: Operation, body: Mapping[str, Any] | None) -> dict[str, Any]:
    good = {kind: {"schema": {"type": "object"}} if kind == JSON else {} for kind in operation.answers}
    error = {JSON: {"schema": _like(_sample_error(rule.rule))}}
    described: dict[str, Any] = {
        "operationId": rule.endpoint,
        "summary": operation.summary,
        "tags": [next(tag for beginning, tag in _TAGS.items() if rule.rule.startswith(beginning))],
        "responses": {
            str(operation.status): {"description": "A good answer.", "content": good},
            "default": {"description": "A refusal, or a failure.", "content": error},
        },
    }
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in sorted(rule.arguments)
    ]
    parameters += [{"name": name, "in": "query", "schema": dict(kind)} for name, kind in operation.query.items()]
    if parameters:
        described["parameters"] = parameters
    if body is not None:
        described["requestBody"] = {"required": True, "content": {JSON: {"schema": dict(body)}}}
    if rule.rule in OPEN_PATHS:
        described["security"] = []
    return described


def _sample_error(path: str) -> object:
    return msgspec.json.decode(error_body(Failure(400, "invalid_request_error", None, "a sentence"), path))


def _like(value: object) -> dict[str, object]:
    """Return a schema of what looks like `value`; null stands for anything."""
    if isinstance(value, dict):
        inner = {name: _like(each) for name, each in value.items()}
        return {"type": "object", "properties": inner, "required": sorted(inner)}
    return {"type": "string"} if isinstance(value, str) else {}
