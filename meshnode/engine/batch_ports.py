"""What the batch needs of a stage model and of a session's cache."""

from collections.abc import Sequence
from typing import Protocol

import torch

from meshnode.engine.executor import StageSpec
from meshnode.engine.stage_model import Part, Rows

__all__ = ["Cache", "Stage"]


class Cache(Protocol):
    """The cache of one session: `length` positions are filled."""

    length: int

    @property
    def capacity(self) -> int:
        """Positions reserved."""
        ...

    def share(self, contents: Sequence[bytes]) -> int:
        """Go on with pages that are kept with these contents; return how many positions that adds."""
        ...

    def keep(self, contents: Sequence[bytes]) -> None:
        """Let others share the full pages with these contents, from the first page on."""
        ...

    def truncate(self, length: int) -> None:
        """Forget positions from `length` on."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...


class Stage(Protocol):
    """The loaded stage."""

    @property
    def spec(self) -> StageSpec:
        """The stage."""
        ...

    def open_cache(self, tokens: int) -> Cache:
        """Reserve a cache. Raises OutOfMemory."""
        ...

    def forward(self, rows: Sequence[Rows], part: Part | None = None) -> list[torch.Tensor]:
        """Run one step."""
        ...
