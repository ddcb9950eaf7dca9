"""Where models come from: the protocol of a source, and what it hands to the import.

To add a source, write a class with these two methods and pass it to the AcquisitionManager.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import attrs

from meshnode.files.source_file import FileRegion, SourceFile
from meshnode.types.manifest import ModelConfig, TensorDescriptor
from meshnode.types.tokenizer import TokenizerData

__all__ = ["ModelOpener", "ReportBytes", "Source", "SourceModel", "SourceTensor"]

ReportBytes = Callable[[int, int], None]
"""Told (bytes done, bytes in all); 0 in all means that nobody knows. What it raises ends the work."""


@attrs.frozen
class SourceTensor:
    """A tensor under its GGUF name, and where its bytes are."""

    descriptor: TensorDescriptor
    region: FileRegion


@attrs.frozen(eq=False)
class SourceModel:
    """An opened model: everything that could be refused has been checked, no weight has been read."""

    name: str  # a suggestion; the catalog keeps names apart
    config: ModelConfig
    tokenizer: TokenizerData
    tensors: Mapping[str, SourceTensor]
    files: tuple[SourceFile, ...]
    license: str | None = None
    origin: str | None = None  # for people
    aliases: tuple[str, ...] = ()


ModelOpener = Callable[[], AbstractContextManager[SourceModel]]
"""Opens a model whose files are readable here. Blocking; raises FileError leafs."""


class Source(Protocol):
    """A kind of place, for example local GGUF files."""

    def accepts(self, reference: str) -> bool:
        """Say whether `reference` is of this kind, from its text alone."""
        ...

    def canonical(self, reference: str) -> str:
        """Return the one way to write `reference`, absolute, so that it still means the same after a restart."""
        ...

    def version(self, reference: str) -> str:
        """Return a short text that changes when what `reference` names changes. May block.

        Raises SourceUnavailable where there is nothing to look at.
        """
        ...

    async def prepare(self, reference: str, scratch: Path, report: ReportBytes) -> ModelOpener:
        """Make the model's files readable here, downloading them if need be, and return what opens them.

        `scratch` is an existing folder for temporary files; the caller removes it after the import, or when this fails or is
        cancelled. `report` hears of the download. Cancellation stops it. Raises FileError leafs.
        """
        ...
