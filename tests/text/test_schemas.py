"""Schemas whose references never arrive, and tools whose arguments are no object, are refused before an answer begins."""

import json

import pytest

from meshnode.errors import RequestError
from meshnode.text.schemas import arguments_grammar, value_grammar

LIST = {"type": "object", "properties": {"next": {"$ref": "#"}, "value": {"type": "integer"}}}
PAIR = {"$defs": {"a/b": {"type": "string"}}, "properties": {"x": {"$ref": "#/$defs/a~1b"}}}


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"allOf": [{"$ref": "#"}]},
        {"anyOf": [{"type": "string"}, {"$ref": "#"}]},
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
        {"type": "object", "properties": {"x": {"$ref": "#/properties/x"}}},
    ],
)
def test_a_reference_that_never_arrives_is_refused(schema):
    with pytest.raises(
        RequestError, match=r"the schema of the answer cannot be enforced: a '\$ref' leads back to itself"
    ):
        value_grammar(json.dumps(schema))


@pytest.mark.parametrize("schema", [LIST, PAIR, {"$ref": "https://example.org/schema"}, {"$ref": "#/nowhere"}])
def test_every_other_reference_is_for_llguidance_to_judge(schema):
    written = json.loads(value_grammar(json.dumps(schema)).removeprefix("%json "))
    assert schema.items() <= written.items()


@pytest.mark.parametrize("kind", ["array", "string", ["array", "null"]])
def test_arguments_that_are_no_object_are_refused_by_the_name_of_their_tool(kind):
    with pytest.raises(RequestError, match="the parameters of tool 'weather' must be of type 'object', not") as caught:
        arguments_grammar(json.dumps({"type": kind}), "weather")
    assert caught.value.param == "tools"


@pytest.mark.parametrize("schema", [True, {}, {"type": ["object", "null"]}, {"type": "object"}])
def test_arguments_are_an_object_whatever_else_is_said(schema):
    assert json.loads(arguments_grammar(json.dumps(schema), "f").removeprefix("%json "))["type"] == "object"
