"""How many bytes of shards this node holds at most, measured whenever it is asked for."""

from collections.abc import Set

from meshnode.placement.ports import OwnModels
from meshnode.types.ids import ModelId

__all__ = ["budget"]

_SPARE = 0.1  # of the free disk that is left free
_FOR_CACHES = 0.25  # of the free memory that is left to the caches of what is loaded into it


def budget(models: OwnModels, pinned: Set[ModelId], fetching: Set[ModelId], given: int, lying: int = 0) -> int:
    """Return the bytes that a person asked for here (`pinned`), and beside them at most `given`, as disk and memory allow.

    What people's own downloads still lack is not free any more. What the node itself is `fetching` has its place within the
    budget, and whoever reads that takes it off. `lying` bytes of what is to be held are on the disk already.
    """
    holdings, loaded = models.holdings(), models.loaded()
    asked = sum(each.nbytes for each in holdings if each.model in pinned)
    mine = sum(each.nbytes for each in holdings) - asked
    in_memory = sum(each.nbytes for each in holdings if each.model in loaded and each.model not in pinned)
    free = max(0, models.free_bytes() - models.awaited_bytes(fetching))
    on_disk = mine + lying + int((1 - _SPARE) * free)
    servable = in_memory + int((1 - _FOR_CACHES) * models.loadable_bytes())
    return asked + min(given, on_disk, servable)
