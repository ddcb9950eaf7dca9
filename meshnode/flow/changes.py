"""Whether anything has changed: who looks every second at many peers need not when nothing has."""

from typing import Any

import attrs

from meshnode.flow.latest import Latest

__all__ = ["Changes"]


@attrs.define(eq=False)
class Changes:
    """What one reader has seen of several values."""

    _watched: tuple[Latest[Any], ...]
    _seen: tuple[int, ...] | None = attrs.field(default=None, init=False)

    def there_are(self) -> bool:
        """Say whether any value was set since this was last asked; the first time, yes."""
        before, self._seen = self._seen, tuple(latest.version for latest in self._watched)
        return self._seen != before
