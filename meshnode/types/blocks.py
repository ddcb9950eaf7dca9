"""Half-open ranges of blocks (transformer layers)."""

from collections.abc import Iterable, Iterator
from typing import Self

import attrs

__all__ = ["BlockRange", "runs_of"]


@attrs.frozen(order=True)
class BlockRange:
    """Blocks `start` (included) to `end` (excluded); never empty, never negative."""

    start: int
    end: int

    def __attrs_post_init__(self) -> None:
        if self.start < 0 or self.end <= self.start:
            raise ValueError(f"a block range needs 0 <= start < end, not {self.start}:{self.end}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `A:B`. Raises ValueError with the reason."""
        start, separator, end = text.partition(":")
        if not separator or not start.strip().isdecimal() or not end.strip().isdecimal():
            raise ValueError(f"a block range is written START:END, for example 0:15, not {text!r}")
        return cls(int(start), int(end))

    def __len__(self) -> int:
        return self.end - self.start

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.end))

    def __contains__(self, block: int) -> bool:
        return self.start <= block < self.end

    def __str__(self) -> str:
        return f"{self.start}:{self.end}"

    def overlap(self, other: "BlockRange") -> "BlockRange | None":
        """Return the blocks in both, or None."""
        start, end = max(self.start, other.start), min(self.end, other.end)
        return BlockRange(start, end) if start < end else None

    def split(self, at: int) -> tuple["BlockRange", "BlockRange"]:
        """Cut in two before block `at`, which must lie strictly inside."""
        return BlockRange(self.start, at), BlockRange(at, self.end)

    def is_covered_by(self, ranges: Iterable["BlockRange"]) -> bool:
        """Say whether every block of this range lies in at least one of `ranges`."""
        reached = self.start
        for candidate in sorted(ranges):
            if candidate.start > reached:
                return False
            reached = max(reached, candidate.end)
            if reached >= self.end:
                return True
        return False


def runs_of(blocks: Iterable[int]) -> list[BlockRange]:
    """Return the ranges without a gap that these different blocks make, in order."""
    runs: list[BlockRange] = []
    for block in sorted(blocks):
        if runs and runs[-1].end == block:
            runs[-1] = BlockRange(runs[-1].start, block + 1)
        else:
            runs.append(BlockRange(block, block + 1))
    return runs
