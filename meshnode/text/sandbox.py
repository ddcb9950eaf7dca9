"""The sandbox that chat templates run in: jinja with its work bounded.

A template comes with a model from anywhere. It may loop for ever, build huge strings, or recurse; a trace function on the
template's own lines ends it at a deadline (a thread cannot be killed, so the work must end itself), and the operators and
calls that make big values from small ones are checked before they run.
"""

import datetime
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from types import FrameType
from typing import Any

import attrs
import jinja2
from jinja2 import meta, sandbox

from meshnode.errors import RequestError, UnsupportedModel

__all__ = ["SandboxedTemplate"]

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


@attrs.frozen(eq=False)
class SandboxedTemplate:
    """A compiled template and the names of the variables it asks for."""

    template: jinja2.Template
    variables: frozenset[str]

    @classmethod
    def compile(cls, source: str) -> "SandboxedTemplate":
        """Compile. Raises UnsupportedModel."""
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
            variables = meta.find_undeclared_variables(environment.parse(source))
        except (jinja2.TemplateError, RecursionError, MemoryError) as error:
            raise UnsupportedModel(f"the chat template does not compile: {error}") from error
        return cls(compiled, frozenset(variables))

    def render(self, variables: Mapping[str, object]) -> str:
        """Render, within some two seconds, in any thread. Raises RequestError when the template fails or refuses."""
        try:
            return str(_checked(_within(_SECONDS, lambda: self.template.render(variables))))
        except RequestError:
            raise
        except (jinja2.TemplateError, RecursionError, MemoryError, OverflowError, TypeError, ValueError) as error:
            raise RequestError(f"the model's chat template fails on these messages: {error}") from error
        except (AttributeError, KeyError, IndexError, ZeroDivisionError) as error:
            raise RequestError(f"the model's chat template fails on these messages: {error!r}") from error


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
