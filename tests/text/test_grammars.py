"""Grammars allow what the tool formats write and the schemas describe, and nothing else; what cannot be enforced is refused."""

import llguidance
import pytest

from meshnode.errors import RequestError
from meshnode.text.grammars import AnswerGrammar
from meshnode.text.tool_calls.base import CallText
from meshnode.text.tool_calls.deepseek import DEEPSEEK, DEEPSEEK_PLAIN
from meshnode.text.tool_calls.hermes import HERMES
from meshnode.text.tool_calls.llama import LLAMA
from meshnode.text.tool_calls.mistral import MISTRAL, MISTRAL_NAMED
from meshnode.types.conversation import OutputFormat, Tool, ToolMode, ToolUse

pytestmark = pytest.mark.starter

FORMATS = {made.name: made for made in (HERMES, LLAMA, MISTRAL, MISTRAL_NAMED, DEEPSEEK, DEEPSEEK_PLAIN)}
WEATHER = Tool("weather", "", '{"type":"object","properties":{"city":{"type":"string"}},"required":["city"]}')
ADD = Tool("add", "", '{"type":"object","properties":{"a":{"$ref":"#/$defs/n"}},"required":["a"],"$defs":{"n":{"type":"integer"}}}', strict=True)  # fmt: skip
TOOLS = (WEATHER, ADD)
SUNNY, FIVE, WORD = (
    CallText("weather", '{"city": "Zürich"}'),
    CallText("add", '{"a": 5}'),
    CallText("add", '{"a": "five"}'),
)
FREE = OutputFormat()
BYTES = llguidance.LLTokenizer("byte")


def allows(grammar, text):
    matcher, tokens = llguidance.LLMatcher(BYTES, grammar), list(text.encode())
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


def written(made, *calls):
    spelling = made.spelling
    return spelling.before + spelling.between.join(map(spelling.written, calls)) + spelling.after


@pytest.fixture(params=FORMATS.values(), ids=FORMATS)
def made(request):
    return request.param


@pytest.fixture
def write(made, tokenizer):
    def write(use, output=FREE, *, may_think=False, is_thinking=False):
        return AnswerGrammar(tokenizer, made, may_think).write(use, output, is_thinking=is_thinking)

    return write


def test_a_required_call_is_a_call_that_fits(made, write):
    grammar = write(ToolUse(TOOLS, ToolMode.REQUIRED))
    assert allows(grammar, written(made, FIVE))
    assert allows(grammar, written(made, SUNNY, FIVE))
    assert not allows(grammar, written(made, WORD))
    assert not allows(grammar, "hello")


def test_a_named_tool_is_the_only_one_and_without_parallel_calls_it_is_called_once(made, write):
    grammar = write(ToolUse(TOOLS, ToolMode.REQUIRED, named="add", parallel=False))
    assert allows(grammar, written(made, FIVE))
    assert not allows(grammar, written(made, SUNNY))
    assert not allows(grammar, written(made, FIVE, FIVE))


def test_a_strict_tool_is_held_to_its_schema_though_the_model_may_say_anything_else(made, write):
    grammar = write(ToolUse(TOOLS))
    assert allows(grammar, "Just {some} text <with> [brackets].")
    assert allows(grammar, written(made, SUNNY, FIVE))
    assert allows(grammar, written(made, CallText("weather", '{"place": 1}')))  # not strict
    assert not allows(grammar, written(made, WORD))


def test_tools_that_are_not_strict_leave_the_answer_free(write):
    assert write(ToolUse((WEATHER,))) is None
    assert write(ToolUse(TOOLS, ToolMode.NONE)) is None
    assert write(ToolUse()) is None


def test_an_answer_with_a_form_may_be_a_call_instead(made, write):
    grammar = write(ToolUse(TOOLS), OutputFormat("json_schema", '{"type": "integer"}'))
    assert allows(grammar, "42")
    assert allows(grammar, written(made, FIVE))
    assert not allows(grammar, "forty-two")


def test_json_has_one_space_where_people_put_one_and_none_elsewhere(write):
    grammar = write(ToolUse(), OutputFormat("json_object"))
    assert allows(grammar, '{"a": [1, 2], "b": {}}')
    assert not allows(grammar, '{"a":  1}')
    assert not allows(grammar, '{\n"a": 1}')
    assert not allows(grammar, "[1]")


def test_a_model_that_thinks_does_so_before_the_form(write):
    form = OutputFormat("json_object")
    grammar = write(ToolUse(), form, may_think=True)
    assert allows(grammar, '<think>\nis {a} < 3?\n</think>\n\n{"a": 1}')
    assert allows(grammar, '{"a": 1}')
    assert not allows(grammar, "<think>no</think> then words")
    opened = write(ToolUse(), form, is_thinking=True)
    assert allows(opened, 'is {a} < 3?\n</think>\n\n{"a": 1}')
    assert not allows(opened, '{"a": 1}')


def test_control_tokens_are_named_by_their_number(tokenizer):
    made = HERMES.__class__(
        "x",
        HERMES.spelling.__class__("<|im_start|>NAME ", "<|im_end|>"),
        ("<|im_start|>",),
        HERMES.region,
        HERMES.calls,
    )
    grammar = AnswerGrammar(tokenizer, made, False).write(
        ToolUse((ADD,), ToolMode.REQUIRED), OutputFormat(), is_thinking=False
    )
    start, end = (tokenizer.data.tokens.index(text) for text in ("<|im_start|>", "<|im_end|>"))
    assert f'<[{start}]> "add " %json' in grammar
    assert grammar.rstrip().endswith(f"<[{end}]>")


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("{", "not JSON"),
        ("5", "not a JSON schema"),
        ('{"type": "frob"}', "Invalid type: frob"),
        ('{"$ref": "#/$defs/missing"}', "missing"),
        ('{"type": "string", "pattern": "(?=x)y"}', "regular expression: look-around"),
        ('{"not": {"type": "string"}}', "not"),
        ("false", "cannot be enforced"),
        ('{"properties": {"a": ' * 200 + "{}" + "}}" * 200, "nested deeper than 100 levels"),
        ('{"type": "object", "properties": {' + ",".join(f'"p{i}": {{"type": "string"}}' for i in range(30000)) + "}}", "than 1048576|too large"),
    ],
)  # fmt: skip
def test_what_cannot_be_enforced_is_refused_by_name(write, schema, message):
    with pytest.raises(RequestError, match=message):
        write(ToolUse(), OutputFormat("json_schema", schema))
