"""Writes the grammar of an answer that must have a form: tool calls, JSON, or both after some thought.

The language is llguidance's dialect of Lark (https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md): the stage that
samples compiles it with the model's own tokens. JSON is written with one space after colons and commas, and no other white space:
small models fill objects with newlines where they may.
"""

import json
from collections.abc import Sequence

import attrs
import llguidance

from meshnode.errors import RequestError
from meshnode.text.reasoning import CLOSING, OPENING
from meshnode.text.schemas import arguments_grammar, value_grammar
from meshnode.text.tool_calls import ToolFormat
from meshnode.text.vocabulary import Tokenizer
from meshnode.types.conversation import OutputFormat, Tool, ToolMode, ToolUse

__all__ = ["AnswerGrammar"]

_MAX_GRAMMAR = 1 << 20  # characters
_OPTIONS = '%llguidance {"no_forcing": true}'  # text that must come may come in whatever tokens the model likes best
_ANYTHING = r"/(.|\n)*/"
_ANY_OBJECT = '{"type":"object"}'


@attrs.frozen(eq=False)
class AnswerGrammar:
    """Writes grammars for one model."""

    tokenizer: Tokenizer
    made: ToolFormat
    may_think: bool

    def write(self, use: ToolUse, output: OutputFormat, *, is_thinking: bool) -> str | None:
        """Return the grammar, or None when the answer is free.

        `is_thinking`: the prompt has opened the reasoning. Raises RequestError naming what llguidance cannot do.
        """
        tools = () if use.mode is ToolMode.NONE else use.tools
        rules = self._body(tools, use, output)
        if rules is None:
            return None
        thought = self._thought(is_thinking=is_thinking)
        grammar = "\n".join([_OPTIONS, "start: thought body" if thought else "start: body", *thought, *rules])
        if len(grammar) > _MAX_GRAMMAR:
            raise RequestError(f"the schemas make a grammar of {len(grammar)} characters, more than {_MAX_GRAMMAR}")
        error = llguidance.LLMatcher.validate_grammar(grammar, None)
        if error:
            raise _culprit(tools, output) or RequestError(f"this form cannot be enforced: {_reason(error)}")
        return grammar

    def _body(self, tools: Sequence[Tool], use: ToolUse, output: OutputFormat) -> list[str] | None:
        value = self._value(output)
        if tools and use.mode is ToolMode.REQUIRED:
            wanted = [tool for tool in tools if use.named in (None, tool.name)]
            parallel = use.parallel and use.named is None  # who names a function wants one call of it
            return ["body: calls", *self._calls(wanted, parallel=parallel, strict=True)]
        if value is not None:
            if not tools:
                return [f"body: {value}"]
            return [f"body: {value} | calls", *self._calls(tools, parallel=use.parallel, strict=False)]
        if any(tool.strict for tool in tools):
            return self._free_or_calls(tools, parallel=use.parallel)
        return None

    def _value(self, output: OutputFormat) -> str | None:
        if output.kind == "text":
            return None
        return value_grammar(_ANY_OBJECT if output.kind == "json_object" else output.schema)

    def _calls(self, tools: Sequence[Tool], *, parallel: bool, strict: bool) -> list[str]:
        """Return rules for `calls`; without `strict` only tools that are strict themselves have their schema enforced."""
        spelling = self.made.spelling
        between = f" ({self._literal(spelling.between)} call)*" if parallel else ""
        if not spelling.between and parallel:
            between = " call*"
        calls = f"calls: {self._literal(spelling.before)} call{between} {self._literal(spelling.after)}"
        options = " | ".join(f"call_{index}" for index in range(len(tools)))
        return [calls, f"call: {options}", *self._each(tools, strict=strict, opened=False)]

    def _each(self, tools: Sequence[Tool], *, strict: bool, opened: bool) -> list[str]:
        spelling = self.made.spelling
        rules = []
        for index, tool in enumerate(tools):
            head = spelling.head.replace("NAME", tool.name)
            if opened:
                head = head.removeprefix(self.made.openings[0])
            schema = tool.parameters if strict or tool.strict else _ANY_OBJECT
            arguments = arguments_grammar(schema, tool.name)
            rules.append(f"call_{index}: {self._literal(head)} {arguments} {self._literal(spelling.tail)}")
        return rules

    def _free_or_calls(self, tools: Sequence[Tool], *, parallel: bool) -> list[str]:
        """Return rules for free text in which every call is one: what begins like a call must go on as one."""
        if self.made.bare is not None:
            free = r"FREE: /([^{\[\s](.|\n)*)?/"
            return ["body: FREE | calls", free, *self._calls(tools, parallel=parallel, strict=False)]
        opening, spelling = self.made.openings[0], self.made.spelling
        if spelling.before:
            rest = spelling.before.removeprefix(opening)
            more = f" ({self._literal(spelling.between)} call)*" if spelling.between else " call*"
            inner = f"{self._literal(rest)} call{more if parallel else ''} {self._literal(spelling.after)}"
        else:
            inner = "call"
        options = " | ".join(f"call_{index}" for index in range(len(tools)))
        repeat = "*" if parallel and not spelling.before else "?"
        return [
            f"body: stretch{repeat} FREE",
            f"FREE: {_ANYTHING}",
            *self._until(opening, "trigger"),
            f"stretch: trigger {inner}",
            f"call: {options}",
            *self._each(tools, strict=False, opened=not spelling.before),
        ]

    def _until(self, marker: str, rule: str) -> list[str]:
        """Return a rule for any text up to a marker, and the marker."""
        literal = self._literal(marker)
        if literal.startswith('"'):
            return [f"{rule}[lazy]: {_ANYTHING} {literal}"]
        return [f"{rule}: {rule.upper()}_TEXT {literal}", f"{rule.upper()}_TEXT: {_ANYTHING}"]

    def _thought(self, *, is_thinking: bool) -> list[str]:
        """Return rules for the reasoning that comes before the body, if this model reasons."""
        if not self.may_think and not is_thinking:
            return []
        ending = self._until(CLOSING, "thinking")
        if is_thinking:
            return [r"thought: thinking SPACE", *ending, r"SPACE: /\n{0,2}/"]
        opened = f"{self._literal(OPENING)} thinking SPACE"
        return [f"thought: ({opened})?", *ending, r"SPACE: /\n{0,2}/"]

    def _literal(self, text: str) -> str:
        """Return text as Lark has it: control tokens by their number."""
        pieces = []
        for plain, control in self.tokenizer.split_control(text):
            if control is not None and not self.tokenizer.token_bytes(control):
                pieces.append(f"<[{control}]>")
            elif plain:
                pieces.append(json.dumps(plain, ensure_ascii=False))
        return " ".join(pieces)


def _culprit(tools: Sequence[Tool], output: OutputFormat) -> RequestError | None:
    """Return a refusal that names the schema which cannot be enforced by itself."""
    schemas: list[tuple[str, str | None, str]] = [
        (f"the parameters of tool {tool.name!r}", "tools", arguments_grammar(tool.parameters, tool.name))
        for tool in tools
    ]
    if output.kind == "json_schema":
        schemas.append(("the schema of the answer", None, value_grammar(output.schema)))
    for what, param, grammar in schemas:
        if error := llguidance.LLMatcher.validate_grammar(f"start: {grammar}", None):
            return RequestError(f"{what} cannot be enforced: {_reason(error)}", param=param)
    return None


def _reason(error: str) -> str:
    """Return what a person can use of llguidance's message."""
    lines = [line.strip() for line in error.strip().splitlines()]
    cause = lines[0].partition("failed to compile JSON schema: ")[2] or lines[0]
    if cause.startswith("regex parse error") and (found := next((x for x in lines if x.startswith("error:")), "")):
        cause = f"a regular expression: {found.removeprefix('error:').strip()}"
    return cause[:300]
