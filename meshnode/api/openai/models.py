"""GET /v1/models and /v1/models/{id}."""

from collections.abc import Iterable

from meshnode.api.naming import find_model
from meshnode.api.ports import ServedModel

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
    """Return one model by any of its names. Raises UnknownModel listing what there is."""
    return _entry(find_model(models, name))
