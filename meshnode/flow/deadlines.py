"""A budget of time that several steps share."""

import attrs
import trio

__all__ = ["Budget"]


@attrs.frozen(kw_only=True)  # Budget(25) would be a moment long past: Budget.of(25) says what is meant
class Budget:
    """Ends at a fixed moment, however many steps draw on it."""

    ends_at: float  # trio.current_time()

    @classmethod
    def of(cls, seconds: float) -> "Budget":
        """Start a budget now."""
        return cls(ends_at=trio.current_time() + seconds)

    def remaining(self) -> float:
        """Return the seconds left, never negative."""
        return max(0.0, self.ends_at - trio.current_time())

    def share(self, at_most: float) -> float:
        """Return what a step may take: what is left, but not more than `at_most` seconds."""
        return min(at_most, self.remaining())
