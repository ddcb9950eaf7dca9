"""The list of models, as Anthropic's clients know it: in pages, each model with what it can do."""

import datetime
from collections.abc import Mapping, Sequence

from werkzeug.datastructures import MultiDict

from meshnode.api.anthropic.wrong import wrong_at
from meshnode.api.ports import ServedModel

__all__ = ["PAGING", "list_models", "show_model"]

_MOST, _USUALLY = 1000, 20
_LIFECYCLES = ("active", "deprecated", "retired")
_NO, _YES = {"supported": False}, {"supported": True}

PAGING: Mapping[str, Mapping[str, object]] = {
    "limit": {"type": "integer", "minimum": 1, "maximum": _MOST},
    "after_id": {"type": "string"},
    "before_id": {"type": "string"},
    "lifecycle": {"type": "array", "items": {"enum": list(_LIFECYCLES)}},
}
"""The query's parameters, as JSON Schema."""


def list_models(models: Sequence[ServedModel], query: MultiDict[str, str]) -> dict[str, object]:
    """Return a page. Raises RequestError for a limit out of range, and for cursors that name no model or point both ways."""
    limit, after, before = _limit(query.get("limit")), query.get("after_id"), query.get("before_id")
    if after and before:
        raise wrong_at("before_id", "there is an after_id too; a page is on one side")
    found = list(models) if "active" in _lifecycles(query) else []
    if after:
        rest = found[_place(found, after, "after_id") + 1 :]
        page, has_more = rest[:limit], len(rest) > limit
    elif before:
        rest = found[: _place(found, before, "before_id")]
        page, has_more = rest[-limit:], len(rest) > limit
    else:
        page, has_more = found[:limit], len(found) > limit
    ends = {"first_id": page[0].name, "last_id": page[-1].name} if page else {"first_id": None, "last_id": None}
    return {"data": [show_model(model) for model in page], "has_more": has_more, **ends}


def show_model(model: ServedModel) -> dict[str, object]:
    """Return one. Whether it thinks is known of a model that is loaded here; else its capabilities are null: not known."""
    created = datetime.datetime.fromtimestamp(model.created, datetime.UTC).isoformat().replace("+00:00", "Z")
    return {
        "type": "model",
        "id": model.name,
        "display_name": model.name,
        "created_at": created,
        "lifecycle": "active",
        "deprecated_at": None,
        "retires_at": None,
        "line": None,
        "max_input_tokens": model.context_length,
        "max_tokens": model.context_length,  # prompt and answer share it
        "capabilities": _capabilities(thinks=model.thinks) if model.loaded else None,
    }


def _capabilities(*, thinks: bool) -> dict[str, object]:
    """Return what can be asked of a model here; efforts are taken, and all mean the same."""
    thinking = _YES if thinks else _NO
    return {
        "batch": _NO,
        "citations": _NO,
        "code_execution": _NO,
        "context_management": _NO,
        "effort": {"supported": False, **dict.fromkeys(("low", "medium", "high", "xhigh", "max"), _NO)},
        "image_input": _NO,
        "pdf_input": _NO,
        "server_tools": {"supported": False, "code_execution": _NO, "web_search": _NO},
        "structured_outputs": _YES,
        "thinking": {
            "supported": thinks,
            "types": {"adaptive": thinking, "enabled": thinking, "disabled": _YES, "between_tools": _NO},
        },
    }


def _limit(given: str | None) -> int:
    if given is None:
        return _USUALLY
    if not (given.isascii() and given.isdecimal() and len(given) < 6 and 1 <= int(given) <= _MOST):
        raise wrong_at("limit", f"{given[:20]!r} is no number from 1 to {_MOST}")
    return int(given)


def _lifecycles(query: MultiDict[str, str]) -> set[str]:
    given = [*query.getlist("lifecycle"), *query.getlist("lifecycle[]")]
    if (unknown := next((each for each in given if each not in _LIFECYCLES), None)) is not None:
        raise wrong_at("lifecycle", f"{unknown[:40]!r} is none of {', '.join(_LIFECYCLES)}")
    return set(given or _LIFECYCLES)


def _place(models: Sequence[ServedModel], name: str, field: str) -> int:
    for index, model in enumerate(models):
        if model.name == name:
            return index
    raise wrong_at(field, f"{name[:80]!r} is none of the models")
