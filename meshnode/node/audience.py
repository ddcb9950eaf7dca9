"""Tells a person at the terminal how far the node is: what it fetches, where the API is, which models answer."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TextIO

import attrs
import trio

from meshnode.flow.periodic import Ticker
from meshnode.node.views import NodeView

__all__ = ["Screen", "inform"]

_PERIOD = 0.2  # seconds between two looks; a person sees no more


class Screen(Protocol):
    """A person's terminal. Nothing in it waits or raises."""

    @property
    def log(self) -> TextIO:
        """Where log lines go, so that they and the progress do not write over each other."""

    def show_progress(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Show the acquisitions under way, as /api/admin/status has them; none, if there are none."""

    def show_address(self, url: str, *, has_models: bool) -> None:
        """Say that the API answers at `url`; `has_models`: some model is here or on its way."""

    def show_model(self, name: str) -> None:
        """Say that the model answers, for the first time."""

    def close(self) -> None:
        """Leave the terminal tidy; the node has stopped."""


async def inform(screen: Screen, started: trio.Event, view: NodeView) -> None:
    """Keep the screen up to date until cancelled; `started` is set once the API answers."""
    told_address, told_models = False, set[str]()
    try:
        async for _ in Ticker(_PERIOD):
            models = view.models
            if started.is_set() and not told_address:
                told_address = True
                has_models = bool(models.catalog.manifests() or models.intent.value.pending)
                screen.show_address(view.url, has_models=has_models)
            if told_address:
                ready = {model.manifest.name for model in models.loaded.value.values() if model.is_ready}
                for name in sorted(ready - told_models):
                    screen.show_model(name)
                told_models |= ready
            under_way = [row for row in view.progress.value if row.phase not in ("done", "failed")]
            screen.show_progress([attrs.asdict(row) for row in under_way])
    finally:
        screen.close()
