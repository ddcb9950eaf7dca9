"""Which block class runs which architecture name."""

from meshnode.engine.architectures.llama import LlamaBlock
from meshnode.errors import UnsupportedModel

__all__ = ["block_class"]

_BLOCKS = {"llama": LlamaBlock}


def block_class(architecture: str) -> type[LlamaBlock]:
    """Return the class for `ModelConfig.architecture`. Raises UnsupportedModel listing what there is."""
    if architecture not in _BLOCKS:
        raise UnsupportedModel(f"architecture {architecture!r} cannot be run; known: {', '.join(sorted(_BLOCKS))}")
    return _BLOCKS[architecture]
