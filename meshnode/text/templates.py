"""Chat templates: untrusted jinja programs, run in a sandbox that bounds their work, and kept from minting control tokens.

A template comes with a model from anywhere. It may loop for ever, build huge strings, or recurse; a trace function on the
template's own lines ends it at a deadline (a thread cannot be killed, so the work must end itself), and the operators and
calls that make big values from small ones are checked before they run.

User text is kept apart from the template's: control-token texts in it travel through the template as single private-use
characters and come back as plain text after tokenising, so `<|im_end|>` in a message is ten ordinary characters.
"""

import datetime
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from types import FrameType
from typing import Any

import attrs
import jinja2
from jinja2 import sandbox

from meshnode.errors import RequestError, UnsupportedModel
from meshnode.text.vocabulary import Tokenizer
from meshnode.types.conversation import ChatMessage

__all__ = ["ChatTemplate", "RenderedPrompt"]

_MAX_SOURCE = 1 << 18  # characters of template
_MAX_VALUE = 1 << 25  # characters of any one string or items of any one list a template makes
_SECONDS = 2.0
_TOO_LARGE = "the model's chat template builds a value that is too large"
_FILTERS = (  # what chat templates use; each does work in proportion to its input
    *(
        "abs",
        "capitalize",
        "count",
        "d",
        "default",
        "dictsort",
        "e",
        "escape",
        "first",
        "float",
        "int",
        "items",
        "last",
    ),
    *("length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "reverse", "round", "safe", "select"),
    *("selectattr", "sort", "string", "title", "trim", "unique", "upper"),
)
_CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_PRIVATE = (0xF0000, 0x100000)  # where stand-ins are taken from: the two private-use planes


@attrs.frozen
class RenderedPrompt:
    """A prompt whose stand-ins are still in place."""

    text: str
    standins: dict[str, str]  # private-use character -> what the user wrote
    border: str | None  # a private-use character between the template's text and the user's, when it matters

    def encode(self, tokenizer: Tokenizer) -> list[int]:
        """Tokenise: control tokens are recognised in the template's text alone."""
        tokens: list[int] = []
        if tokenizer.data.add_bos and tokenizer.bos_token is not None:
            tokens.append(tokenizer.bos_token)
        pieces = self.text.split(self.border) if self.border else [self.text]
        for piece in pieces:
            for text, control in tokenizer.split_control(piece):
                if control is not None:
                    if not (len(tokens) == 1 and tokens == [control] == [tokenizer.bos_token]):
                        tokens.append(control)  # a template that writes BOS itself does not get it twice
                elif text:
                    plain = "".join(self.standins.get(letter, letter) for letter in text) if self.standins else text
                    after = not tokens or not tokenizer.token_bytes(tokens[-1])
                    tokens += tokenizer.encode_fragment(plain, parse_special=False, after_special=after)
        return tokens


class _Environment(sandbox.ImmutableSandboxedEnvironment):
    """Refuses operations whose result would be out of proportion to their operands."""

    intercepted_binops = frozenset({"*", "**", "%", "+"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:  # noqa: ANN401
        if operator == "**" and not (_small(left, 1000) and _small(right, 64)):
            raise RequestError("the model's chat template computes a power that is too large")
        if operator == "*" and _length(left) * _length(right) > _MAX_VALUE:
            raise RequestError(_TOO_LARGE)
        if operator == "%" and isinstance(left, str) and any(char.isdigit() for char in left):
            raise RequestError("the model's chat template formats with a width, which is not allowed")
        return _checked(super().call_binop(context, operator, left, right))

    def call(self, context: Any, function: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        for argument in (*args, *kwargs.values()):
            if isinstance(argument, int) and abs(argument) > _MAX_VALUE:
                raise RequestError(f"the model's chat template passes {argument} to a function, which is too large")
        subject = getattr(function, "__self__", None)
        if isinstance(subject, str) and function.__name__ in ("replace", "join"):
            return _replace(subject, *args) if function.__name__ == "replace" else _join(args[0], subject)
        return _checked(super().call(context, function, *args, **kwargs))


def _small(value: object, limit: int) -> bool:
    return isinstance(value, int | float) and abs(value) <= limit


def _length(value: object) -> int:
    if isinstance(value, str | list | tuple | bytes):
        return len(value)
    return abs(value) if isinstance(value, int) else 1


def _checked(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, str | list | tuple) and len(value) > _MAX_VALUE:
        raise RequestError(_TOO_LARGE)
    return value


def _tojson(value: object, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:  # noqa: ANN401
    """HF's filter: no HTML escaping, keys in their order."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _join(items: Iterable[object], separator: str = "") -> str:
    parts = [str(item) for item in items]
    if len(parts) * len(separator) + sum(map(len, parts)) > _MAX_VALUE:
        raise RequestError(_TOO_LARGE)
    return separator.join(parts)


def _replace(text: object, old: str, new: str, count: int = -1) -> str:
    subject = str(text)
    if (subject.count(old) if count < 0 else count) * len(new) + len(subject) > _MAX_VALUE:
        raise RequestError(_TOO_LARGE)
    return subject.replace(old, new, count)


def _indent(text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    margin = width if isinstance(width, str) else " " * min(width, 100)
    lines = text.split("\n")
    return "\n".join(margin + line if (line or blank) and (first or i) else line for i, line in enumerate(lines))


def _raise_exception(message: str) -> None:
    raise RequestError(f"the model's chat template refuses these messages: {message}")


def _strftime_now(layout: str) -> str:
    return datetime.datetime.now(tz=datetime.UTC).astimezone().strftime(layout)


@attrs.frozen(eq=False)
class ChatTemplate:
    """A compiled template. `render` may run in any thread and takes at most some two seconds."""

    template: jinja2.Template
    tokenizer: Tokenizer
    controls: tuple[str, ...]  # longest first

    @classmethod
    def compile(cls, tokenizer: Tokenizer) -> "ChatTemplate":
        """Compile the vocabulary's template, or ChatML where its tokens are there and no template is.

        Raises UnsupportedModel for a model without one, and for one that does not compile.
        """
        source = tokenizer.data.chat_template
        controls = tuple(sorted(tokenizer.control_texts, key=len, reverse=True))
        if source is None:
            if "<|im_start|>" not in controls:
                raise UnsupportedModel(
                    "this model has no chat template; use /v1/completions, or a model tuned for chat"
                )
            source = _CHATML
        if len(source) > _MAX_SOURCE:
            raise UnsupportedModel(f"the chat template has {len(source)} characters, more than {_MAX_SOURCE}")
        environment = _Environment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"], undefined=jinja2.Undefined
        )
        filters = {name: environment.filters[name] for name in _FILTERS}
        environment.filters = filters | {"tojson": _tojson, "join": _join, "replace": _replace, "indent": _indent}
        functions = {name: environment.globals[name] for name in ("range", "dict", "namespace")}
        environment.globals = functions | {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        try:
            compiled = environment.from_string(source)
        except (jinja2.TemplateError, RecursionError, MemoryError) as error:
            raise UnsupportedModel(f"the chat template does not compile: {error}") from error
        return cls(compiled, tokenizer, controls)

    def render(self, messages: Sequence[ChatMessage], *, add_generation_prompt: bool = True) -> RenderedPrompt:
        """Render a conversation. Blocking, some milliseconds.

        Raises RequestError when the template refuses, fails, takes too long, or loses the last user message.
        """
        base = _free_block(messages, len(self.controls) + 1)
        border = chr(base)
        standins = {chr(base + 1 + i): text for i, text in enumerate(self.controls)}
        hidden = {text: letter for letter, text in standins.items()}

        def shielded(text: str) -> str:
            for control in self.controls:
                text = text.replace(control, hidden[control])
            return text

        def fenced(text: str) -> str:
            core = text.strip()
            return text.replace(core, border + core + border, 1) if core else text

        contents = [(message.role, shielded(message.content)) for message in messages]
        text = self._run(contents, add_generation_prompt)
        last = next((content for role, content in reversed(contents) if role == "user"), "")
        if last.strip() and last.strip() not in text:
            raise RequestError(
                "the model's chat template lost the last user message; it does not fit this conversation"
            )
        walled = self._run([(role, fenced(content)) for role, content in contents], add_generation_prompt)
        used = {letter: original for letter, original in standins.items() if letter in text}
        if _controls_in(text, self.tokenizer) == _controls_in(walled, self.tokenizer):
            return RenderedPrompt(text, used, None)
        return RenderedPrompt(walled, used, border)  # a border had completed a control token: keep the pieces apart

    def _run(self, contents: Sequence[tuple[str, str]], add_generation_prompt: bool) -> str:
        def token_text(token: int | None) -> str:
            return "" if token is None else self.tokenizer.data.tokens[token]

        variables = {
            "messages": [{"role": role, "content": content} for role, content in contents],
            "add_generation_prompt": add_generation_prompt,
            "bos_token": token_text(self.tokenizer.bos_token),
            "eos_token": token_text(self.tokenizer.eos_token),
        }
        try:
            return str(_checked(_within(_SECONDS, lambda: self.template.render(variables))))
        except RequestError:
            raise
        except (jinja2.TemplateError, RecursionError, MemoryError, OverflowError, TypeError, ValueError) as error:
            raise RequestError(f"the model's chat template fails on these messages: {error}") from error
        except (AttributeError, KeyError, IndexError, ZeroDivisionError) as error:
            raise RequestError(f"the model's chat template fails on these messages: {error!r}") from error


def _controls_in(text: str, tokenizer: Tokenizer) -> list[int]:
    return [control for _, control in tokenizer.split_control(text) if control is not None]


def _free_block(messages: Sequence[ChatMessage], size: int) -> int:
    """Return the first of `size` private-use characters that no message contains."""
    used = {ord(letter) for message in messages for letter in message.content if ord(letter) >= _PRIVATE[0]}
    for plane in _PRIVATE:
        for base in range(plane, plane + 0xFFFE - size, size):
            if not used or not any(base <= letter < base + size for letter in used):
                return base
    raise RequestError("the messages use every private-use character there is")


def _within(seconds: float, render: Callable[[], str]) -> str:
    """Run `render` and end it after `seconds`: every line of the template checks the clock."""
    deadline = time.monotonic() + seconds

    def on_line(_frame: FrameType, _event: str, _argument: object) -> Any:  # noqa: ANN401
        if time.monotonic() > deadline:
            raise RequestError(f"the model's chat template runs for more than {seconds:.0f} s and was stopped")
        return on_line

    def on_call(frame: FrameType, _event: str, _argument: object) -> Any:  # noqa: ANN401
        return on_line if frame.f_code.co_filename == "<template>" else None

    previous = sys.gettrace()
    sys.settrace(on_call)
    try:
        return render()
    finally:
        sys.settrace(previous)
