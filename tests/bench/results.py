"""What a measurement says: one figure, its goal, and what was measured beside it."""

import statistics
from collections.abc import Sequence

import attrs


@attrs.frozen
class Row:
    """One line of the table."""

    title: str
    value: float
    unit: str
    at_least: float | None = None
    at_most: float | None = None
    beside: dict[str, float] = attrs.field(factory=dict)  # what the value was made of, or is to be read with

    @property
    def goal(self) -> str:
        if self.at_least is not None:
            return f">= {self.at_least:g}"
        return "" if self.at_most is None else f"<= {self.at_most:g}"

    @property
    def is_met(self) -> bool | None:
        """Whether the goal is reached; None where there is none."""
        if self.at_least is not None:
            return self.value >= self.at_least
        return None if self.at_most is None else self.value <= self.at_most

    def line(self) -> str:
        verdict = {True: "met", False: "MISSED", None: ""}[self.is_met]
        beside = ", ".join(f"{name} {value:.5g}" for name, value in self.beside.items())
        return f"{self.title:46}{self.value:9.4g} {self.unit:10}{self.goal:10}{verdict:8}{beside}"

    def as_json(self) -> dict[str, object]:
        goal = {"at_least": self.at_least, "at_most": self.at_most}
        return {"title": self.title, "value": self.value, "unit": self.unit, **goal, "met": self.is_met, **self.beside}


@attrs.frozen
class Report:
    """The rows of one measurement and how they came about."""

    name: str
    how: str
    rows: tuple[Row, ...]


def spread(values: Sequence[float]) -> float:
    """Return the distance between the quartiles: how far apart rounds were."""
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return high - low
