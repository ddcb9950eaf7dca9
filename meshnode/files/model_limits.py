"""What a model's numbers may be, whatever file they came from."""

import math

from meshnode.errors import InvalidModelFile
from meshnode.types.manifest import ModelConfig

__all__ = ["check_config", "context_within_window"]

_COUNTS = {  # the most anybody would believe
    "block_count": 10_000,
    "hidden_size": 1 << 20,
    "feed_forward_size": 1 << 24,
    "head_count": 1 << 16,
    "kv_head_count": 1 << 16,
    "head_size": 1 << 16,
    "vocabulary_size": 1 << 24,
    "context_length": 1 << 32,
    "rope_size": 1 << 16,
}


def check_config(config: ModelConfig) -> None:
    """Raise InvalidModelFile, naming the number, where a configuration makes no sense."""
    for field, most in _COUNTS.items():
        value: int = getattr(config, field)
        if not 1 <= value <= most:
            raise InvalidModelFile(f"the model's {field} is {value}; it must be from 1 to {most}")
    if config.head_count % config.kv_head_count:
        raise InvalidModelFile(f"{config.head_count} heads cannot share {config.kv_head_count} KV heads evenly")
    if config.head_size % 2 or config.rope_size % 2 or config.rope_size > config.head_size:
        raise InvalidModelFile(
            f"heads of {config.head_size} dimensions of which {config.rope_size} are rotated: both must be even, and the "
            "second not above the first"
        )
    for field in ("norm_epsilon", "rope_base", "rope_scale"):
        number: float = getattr(config, field)
        if not (math.isfinite(number) and number > 0):
            raise InvalidModelFile(f"the model's {field} is {number}; it must be a positive number")


def context_within_window(context: int, window: int) -> int:
    """Return the context length at which sliding-window attention and full attention are the same computation.

    The engine attends to everything, so a model with a window (Mistral 7B v0.1: 4096 of 32768 tokens) is run exactly up to
    the window and not beyond.
    """
    return min(context, window) if window > 0 else context
