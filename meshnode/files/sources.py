"""Where models come from: the protocol of a source, and what it hands to the import.

To add a source, write a class with the methods of `Source` and pass it to the AcquisitionManager.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol

import attrs

from meshnode.files.source_file import FileRegion, SourceFile
from meshnode.types.manifest import ModelConfig, ShardKind, TensorDescriptor
from meshnode.types.tokenizer import TokenizerData

__all__ = ["ExaminedSource", "KeepShard", "ModelOpener", "ReportBytes", "Source", "SourceModel", "SourceTensor"]

ReportBytes = Callable[[int, int], None]
"""Told (bytes done, bytes in all); 0 in all means that nobody knows. What it raises ends the work."""

KeepShard = Callable[[ShardKind, int | None], bool]
"""Says by kind and block whether a shard is to be written, or only hashed for the manifest."""


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

    async def version(self, reference: str) -> str:
        """Return a short text that changes when what `reference` names changes.

        Raises SourceUnavailable where there is nothing to look at. Cancellation ends the look.
        """
        ...

    async def prepare(
        self, reference: str, scratch: Path, report: ReportBytes, needs: KeepShard | None = None
    ) -> ModelOpener:
        """Make the model's files readable here, downloading them if need be, and return what opens them.

        With `needs`, of the weights only the shards it names will be read; a source may leave out the bytes of the others.
        `scratch` is an existing folder for temporary files; the caller removes it after the import, or when this fails or is
        cancelled. `report` hears of the download. Cancellation stops it. Raises FileError leafs.
        """
        ...


@attrs.frozen(eq=False)
class ExaminedSource:
    """A source whose models somebody else has a say about before a byte of them is written.

    What this package cannot judge, whether there is a tokenizer for the vocabulary for example, is refused then as early as
    what it can.
    """

    source: Source
    examine: Callable[[SourceModel], object]  # blocking; raises UnsupportedModel or InvalidModelFile

    def accepts(self, reference: str) -> bool:
        """As the source says."""
        return self.source.accepts(reference)

    def canonical(self, reference: str) -> str:
        """As the source says."""
        return self.source.canonical(reference)

    async def version(self, reference: str) -> str:
        """As the source says."""
        return await self.source.version(reference)

    async def prepare(
        self, reference: str, scratch: Path, report: ReportBytes, needs: KeepShard | None = None
    ) -> ModelOpener:
        """Prepare the source's model; opening it examines it."""
        return partial(self._open, await self.source.prepare(reference, scratch, report, needs))

    @contextmanager
    def _open(self, opener: ModelOpener) -> Iterator[SourceModel]:
        with opener() as model:
            self.examine(model)
            yield model
