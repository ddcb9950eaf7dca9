"""Whether rows are of numbers. Asked of what comes in and of what goes out, so that who sends others that are none has lied."""

import numpy as np

__all__ = ["is_finite"]

_EXPONENT = 0x7F80  # of a bfloat16


def is_finite(rows: bytes) -> bool:
    """Whether no number of raw bfloat16 is infinite or none; torch would take three times as long for one row."""
    return not rows or bool((np.frombuffer(rows, dtype=np.uint16) & _EXPONENT).max() < _EXPONENT)
