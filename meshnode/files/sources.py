"""Where models come from: the protocol of a source, and what it hands to the import.

To add a source, write a class with the methods of `Source` and pass it to the AcquisitionManager.
"""

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol

import attrs

from meshnode.files.source_file import FileRegion, SourceFile
from meshnode.types.manifest import ModelConfig, ShardKind, TensorDescriptor
from meshnode.types.tokenizer import TokenizerData

__all__ = [
    "ExaminedSource",
    "KeepShard",
    "ModelOpener",
    "Origin",
    "ReportBytes",
    "Source",
    "SourceModel",
    "SourceTensor",
]

ReportBytes = Callable[[int, int], None]
"""Told (bytes done, bytes in all); 0 in all means that nobody knows. What it raises ends the work."""

KeepShard = Callable[[ShardKind, int | None], bool]
"""Says by kind and block whether a shard is to be written, or only hashed for the manifest."""


@attrs.frozen
class Origin:
    """What a model was made from, and can be made from again as long as the version is the same."""

    reference: str
    version: str  # a short text that changes when what `reference` names changes
    # A reference that will always name this version, where there are such; the version tells bytes then.
    pinned: str = ""

    @property
    def exact(self) -> str:
        """The reference that names this version for as long as can be."""
        return self.pinned or self.reference


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

    async def look(self, reference: str) -> Origin:
        """Return what `reference` names now.

        Raises SourceUnavailable where there is nothing to look at. Cancellation ends the look.
        """
        ...

    def prepared(
        self, reference: str, scratch: Path, report: ReportBytes, needs: KeepShard | None = None
    ) -> AbstractAsyncContextManager[ModelOpener]:
        """Make the model's files readable here, downloading them if need be, and give what opens them, for as long as it lasts.

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

    async def look(self, reference: str) -> Origin:
        """As the source says."""
        return await self.source.look(reference)

    @asynccontextmanager
    async def prepared(
        self, reference: str, scratch: Path, report: ReportBytes, needs: KeepShard | None = None
    ) -> AsyncIterator[ModelOpener]:
        """Prepare the source's model; opening it examines it."""
        async with self.source.prepared(reference, scratch, report, needs) as opener:
            yield partial(self._open, opener)

    @contextmanager
    def _open(self, opener: ModelOpener) -> Iterator[SourceModel]:
        with opener() as model:
            self.examine(model)
            yield model
