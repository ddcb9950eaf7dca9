"""Which models a name means: the same rule wherever names are taken."""

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import attrs

__all__ = ["AUTO", "ModelNames", "matching", "meant_by", "suited"]

AUTO = "auto"
"""Any model that can do what is asked for, one that is loaded first."""

_Model = TypeVar("_Model")

_MIN_ID_PREFIX = 4
_LATEST = ":latest"  # what Ollama's clients add to a name


@attrs.frozen
class ModelNames:
    """What one model answers to."""

    id: str
    name: str
    aliases: tuple[str, ...] = ()

    @property
    def all(self) -> tuple[str, ...]:
        """Every one of them."""
        return (self.id, self.name, *self.aliases)

    def listed(self) -> str:
        """Return the name for a person, with the aliases."""
        return f"{self.name} ({', '.join(self.aliases)})" if self.aliases else self.name

    def rank(self, name: str) -> int | None:
        """Return how well a whole name fits: 0 is the best, None not at all."""
        if name == self.id:
            return 0
        if name == self.name:
            return 1
        return 2 if name in self.aliases else None

    def begins(self, name: str) -> bool:
        """Whether `name` is the beginning of the model's name, or enough of that of its id."""
        return bool(name) and (self.name.startswith(name) or (len(name) >= _MIN_ID_PREFIX and self.id.startswith(name)))


def meant_by(name: str, aliases: Mapping[str, str]) -> str:
    """Return the name that the settings' aliases give for `name`, or itself."""
    return aliases.get(name) or aliases.get(name.removesuffix(_LATEST)) or name


def suited(models: Iterable[_Model], causal: Callable[[_Model], bool], *, embeds: bool) -> list[_Model]:
    """Return those that `auto` may mean, in their order: models that write; for vectors those that make nothing else, or all."""
    models = list(models)
    return [model for model in models if causal(model) is not embeds] or (models if embeds else [])


def matching(name: str, known: Iterable[ModelNames]) -> list[ModelNames]:
    """Return those that `name` may mean: id, name or alias, in this order; else all whose name or id begins with it.

    `name:latest` is `name`, unless a model is called so.
    """
    known = list(known)
    for wanted in (name, name.removesuffix(_LATEST)):
        ranked = [(rank, names) for names in known if (rank := names.rank(wanted)) is not None]
        if ranked:
            return [names for _, names in sorted(ranked, key=lambda pair: pair[0])]
        if begun := [names for names in known if names.begins(wanted)]:
            return begun
    return []
