"""GET /v1/models and /v1/models/{id}."""

from collections.abc import Iterable

from meshnode.api.naming import find_model
from meshnode.api.ports import ServedModel

__all__ = ["list_models", "show_model"]


def _entry(model: ServedModel, name: str | None = None) -> dict[str, object]:
    return {
        "id": name or model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "meshnode",
        "context_length": model.context_length,
        "max_model_len": model.context_length,
        "loaded": model.loaded,
    }


def list_models(models: Iterable[ServedModel]) -> dict[str, object]:
    """Return OpenAI's list object, with an entry for every name that may be asked for."""
    return {
        "object": "list",
        "data": [_entry(model, name) for model in models for name in (model.name, *model.aliases)],
    }


def show_model(models: Iterable[ServedModel], name: str) -> dict[str, object]:
    """Return one model by any of its names. Raises UnknownModel listing what there is."""
    return _entry(find_model(models, name))
