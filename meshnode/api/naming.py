"""Finds the model that a client names among those that are served."""

from collections.abc import Iterable

from meshnode.api.ports import ServedModel
from meshnode.errors import UnknownModel
from meshnode.types.model_names import AUTO, ModelNames, matching, suited

__all__ = ["find_model"]


def find_model(models: Iterable[ServedModel], name: str) -> ServedModel:
    """Return the one that a request for `name` would go to. Raises UnknownModel listing what there is."""
    known = {ModelNames(model.id, model.name, model.aliases): model for model in models}
    if name == AUTO and known:
        writing = suited(known.values(), lambda model: model.causal, embeds=False) or list(known.values())
        return next((model for model in writing if model.loaded), writing[0])
    found = matching(name, known)
    if len(found) > 1 and found[0].rank(name) is None:
        listed = ", ".join(names.name for names in found)
        raise UnknownModel(f"the model name {name[:80]!r} is ambiguous: {listed}", param="model")
    if found:
        return known[found[0]]
    there_is = ", ".join(names.listed() for names in known) or "none yet"
    raise UnknownModel(f"there is no model {name[:80]!r}; there are: {there_is}", param="model")
