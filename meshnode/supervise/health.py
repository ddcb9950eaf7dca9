"""Health as coded conditions: a subsystem raises one while it holds and clears it after (Tailscale's warnables)."""

import attrs

__all__ = ["Condition", "HealthBoard"]


@attrs.frozen
class Condition:
    """Something an operator should know, as long as it lasts."""

    code: str  # stable, for machines: "pulse_silent"
    subsystem: str
    text: str  # for people, with the next step


@attrs.define(eq=False)
class HealthBoard:
    """The conditions that hold now, at most one per code and subsystem."""

    _conditions: dict[tuple[str, str], Condition] = attrs.field(factory=dict, init=False)

    def raise_condition(self, code: str, subsystem: str, text: str) -> None:
        """State that a condition holds; stating it again replaces its text."""
        self._conditions[code, subsystem] = Condition(code, subsystem, text)

    def clear_condition(self, code: str, subsystem: str) -> None:
        """State that it holds no longer; clearing what does not hold is fine."""
        self._conditions.pop((code, subsystem), None)

    def conditions(self) -> tuple[Condition, ...]:
        """Return what holds now, oldest first."""
        return tuple(self._conditions.values())
