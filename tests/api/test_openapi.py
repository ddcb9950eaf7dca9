"""The OpenAPI document says of every route what it takes, and of nothing else."""

import re

import jsonschema
import msgspec
import pytest
from support.api import CHAT, KEY

from meshnode.api.application import create_app
from meshnode.api.mcp.mount import McpSurface
from meshnode.api.operations import operation_of
from meshnode.api.responses.service import Responses

_VARIABLE = re.compile(r"<(?:\w+:)?(\w+)>")


def pages(app):
    app.add_url_rule("/page", "a page", lambda: "", methods=["GET"])
    return frozenset({"/page"})


def routes(app):
    return {
        (_VARIABLE.sub(r"{\1}", rule.rule), method): app.view_functions[rule.endpoint]
        for rule in app.url_map.iter_rules()
        for method in rule.methods - {"HEAD", "OPTIONS"}
        if rule.rule != "/page"
    }


async def document(node):
    async with node.client() as http:
        return (await http.get("/openapi.json")).json()


async def test_every_route_is_in_it_and_nothing_else(serve):
    async with serve(pages=pages) as node:
        said = await document(node)
        app = create_app(node.dependencies, McpSurface(node.dependencies), Responses(node.dependencies))
        written = {(path, method.upper()) for path, methods in said["paths"].items() for method in methods}
        assert written == set(routes(app))


async def test_every_route_says_what_it_is_for(serve):
    async with serve() as node:
        app = create_app(node.dependencies, McpSurface(node.dependencies), Responses(node.dependencies))
        assert [path for path, view in routes(app).items() if operation_of(view) is None] == []
        identifiers = [
            operation["operationId"] for path in (await document(node))["paths"].values() for operation in path.values()
        ]
        assert len(set(identifiers)) == len(identifiers)


async def test_schemas_are_the_decoders_own(serve):
    async with serve() as node:
        said = await document(node)
        chat = said["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
        schema = {**chat, "components": said["components"]}
        jsonschema.validate(CHAT, schema)
        for wrong in ({**CHAT, "nobody": 1}, {"model": "tiny"}, {**CHAT, "messages": [{"content": "x"}]}):
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate(wrong, schema)
        app = create_app(node.dependencies, McpSurface(node.dependencies), Responses(node.dependencies))
        for (path, method), view in routes(app).items():
            body = operation_of(view).body
            assert ("requestBody" in said["paths"][path][method.lower()]) == (body is not None)


async def test_references_lead_somewhere_and_errors_have_the_shape_of_their_path(serve):
    async with serve() as node, node.client() as http:
        said = await document(node)
        found = set(re.findall(r"#/components/schemas/([^\"]+)", msgspec.json.encode(said).decode()))
        assert found
        assert found <= set(said["components"]["schemas"])
        for path in ("/v1/models/nobody", "/api/show", "/api/admin/join"):
            method = "GET" if path.startswith("/v1/models") else "POST"
            refused = await http.request(method, path, content="{", headers={"Content-Type": "application/json"})
            assert refused.status_code >= 400
            place = said["paths"]["/v1/models/{name}" if method == "GET" else path][method.lower()]
            jsonschema.validate(refused.json(), place["responses"]["default"]["content"]["application/json"]["schema"])


async def test_what_needs_no_key_says_so(serve):
    async with serve() as node:
        said = await document(node)
        assert said["paths"]["/health"]["get"]["security"] == []
        assert "security" not in said["paths"]["/v1/models"]["get"]
        assert said["security"] == [{"key": []}]
        assert KEY not in str(said)
