"""The list of models, as Anthropic's clients know it."""

import datetime
from collections.abc import Sequence

from meshnode.api.ports import ServedModel

__all__ = ["list_models", "show_model"]


def list_models(models: Sequence[ServedModel]) -> dict[str, object]:
    """Return one page with all of them."""
    rows = [show_model(model) for model in models]
    ends = {"first_id": rows[0]["id"], "last_id": rows[-1]["id"]} if rows else {"first_id": None, "last_id": None}
    return {"data": rows, "has_more": False, **ends}


def show_model(model: ServedModel) -> dict[str, object]:
    """Return one."""
    created = datetime.datetime.fromtimestamp(model.created, datetime.UTC).isoformat().replace("+00:00", "Z")
    return {"type": "model", "id": model.name, "display_name": model.name, "created_at": created}
