"""The cache of what keeps nothing between steps: a part without blocks, and a model that reads a text in one step."""

from collections.abc import Sequence

import attrs

from meshnode.engine.prefixes import PAGE

__all__ = ["NoCache"]


@attrs.define(eq=False)
class NoCache:
    """Only counts positions."""

    capacity: int
    length: int = 0

    def share(self, contents: Sequence[bytes]) -> int:
        """Skip what others have computed: nothing of it is needed here."""
        self.length = PAGE * len(contents)
        return self.length

    def keep(self, contents: Sequence[bytes]) -> None:
        """There is nothing to keep."""

    def truncate(self, length: int) -> None:
        """Count from `length` again."""
        self.length = length

    def close(self) -> None:
        """There is nothing to give back."""
