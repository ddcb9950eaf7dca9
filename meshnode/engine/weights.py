"""Reads the tensors of a stage's shards, memory-mapped, under their GGUF names."""

from collections.abc import Iterable
from pathlib import Path
from typing import Self

import attrs
import safetensors
import torch

from meshnode.engine.layers.matrix import RawMatrix
from meshnode.engine.quantization.ggml import PLAIN
from meshnode.errors import InvalidModelFile, UnsupportedModel
from meshnode.types.manifest import ShardDescriptor, TensorDescriptor

__all__ = ["StageWeights"]


@attrs.define(eq=False)
class StageWeights:
    """The tensors of some shards. Every tensor must be taken by the architecture: one left over is a missing feature."""

    _tensors: dict[str, tuple[TensorDescriptor, torch.Tensor]]
    _taken: set[str] = attrs.field(factory=set, init=False)

    @classmethod
    def open(cls, shards: Iterable[tuple[ShardDescriptor, Path]]) -> Self:
        """Map the shard files. Raises InvalidModelFile when a file lacks a tensor of its descriptor, or has another one."""
        tensors: dict[str, tuple[TensorDescriptor, torch.Tensor]] = {}
        for shard, path in shards:
            try:
                with safetensors.safe_open(path, framework="pt") as file:
                    tensors |= {tensor.name: (tensor, file.get_tensor(tensor.name)) for tensor in shard.tensors}
            except (safetensors.SafetensorError, OSError) as error:
                raise InvalidModelFile(f"shard {path.name} cannot be read: {error}") from error
        for tensor, data in tensors.values():
            if (data.dtype, tuple(data.shape)) != _stored_as(tensor):
                # Kernels go by these sizes, and a shard's hash says only that its bytes are those its maker meant.
                raise InvalidModelFile(
                    f"tensor {tensor.name!r} is {data.dtype} {list(data.shape)}, not {tensor.ggml_type} {list(tensor.shape)}"
                )
        return cls(tensors)

    def vector(self, name: str) -> torch.Tensor:
        """Take a plain tensor as float32 [n]."""
        return self._take(name)[1].float().clone()

    def optional_vector(self, name: str) -> torch.Tensor | None:
        """Take a plain tensor if there is one."""
        return self.vector(name) if name in self._tensors else None

    def matrix(self, name: str, row_order: torch.Tensor | None = None) -> RawMatrix:
        """Take a matrix, raw, optionally with its rows in another order."""
        descriptor, data = self._take(name)
        return RawMatrix(descriptor.ggml_type, data, descriptor.shape[-1], row_order)

    def check_all_taken(self) -> None:
        """Raise UnsupportedModel naming the tensors nobody asked for."""
        left = sorted(self._tensors.keys() - self._taken)
        if left:
            raise UnsupportedModel(f"this architecture has no use for the tensors {', '.join(left[:5])}")

    def _take(self, name: str) -> tuple[TensorDescriptor, torch.Tensor]:
        if name not in self._tensors:
            raise InvalidModelFile(f"the model has no tensor {name!r}")
        self._taken.add(name)
        return self._tensors[name]


def _stored_as(tensor: TensorDescriptor) -> tuple[torch.dtype, tuple[int, ...]]:
    """Return how a shard holds a tensor: plain types as they are, others as rows of bytes."""
    plain = PLAIN.get(tensor.ggml_type)
    return (
        (torch.uint8, (tensor.shape[0], tensor.nbytes // tensor.shape[0])) if plain is None else (plain, tensor.shape)
    )
