"""Fields that are taken and change no answer here. Each says so where it is declared, and the OpenAPI document shows it.

`tests/api/test_fields.py` holds every field that is not marked to having an effect, or being refused.
"""

from typing import Annotated, Any

import msgspec

__all__ = ["CacheHint", "CacheMark", "Label", "hint"]


def hint(why: str) -> msgspec.Meta:
    """Return the mark of such a field."""
    return msgspec.Meta(description=f"Changes no answer here: {why}.", extra={"hint": True})


Label = Annotated[str | None, hint("it is a label")]
CacheHint = Annotated[str | None, hint("every prefix is cached as long as there is room, whatever it says")]
CacheMark = Annotated[dict[str, Any] | None, hint("every prefix is cached, marked or not")]
