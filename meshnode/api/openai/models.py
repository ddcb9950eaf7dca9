"""GET /v1/models and /v1/models/{id}."""

from collections.abc import Iterable

from meshnode.api.ports import ServedModel
from meshnode.errors import UnknownModel

__all__ = ["list_models", "show_model"]


def _entry(model: ServedModel) -> dict[str, object]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "meshnode",
        "context_length": model.context_length,
        "max_model_len": model.context_length,
        "loaded": model.loaded,
    }


def list_models(models: Iterable[ServedModel]) -> dict[str, object]:
    """Return OpenAI's list object."""
    return {"object": "list", "data": [_entry(model) for model in models]}


def show_model(models: Iterable[ServedModel], name: str) -> dict[str, object]:
    """Return one model by name or alias. Raises UnknownModel listing what there is."""
    known = tuple(models)
    for model in known:
        if name == model.name or name in model.aliases or name == model.id:
            return _entry(model)
    names = ", ".join(model.name for model in known) or "none yet"
    raise UnknownModel(f"there is no model {name!r}; there are: {names}", param="model")
