"""Models on a hub as a source: the headers first, so that whatever can be refused is refused, then the bytes that are needed.

A model's id comes from the hashes of all its shards, which no hub tells. So all bytes of a model that nobody here knows are
fetched, once; of one whose manifest is known, only those of the shards that are needed.
"""

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Protocol

import attrs
import httpx
import trio
from blake3 import blake3

from meshnode.errors import FileError, SourceUnavailable
from meshnode.files.hub_choice import HubFile, choose_files
from meshnode.files.hub_client import Hub, HubRepository, patiently
from meshnode.files.hub_download import HubDownload
from meshnode.files.hub_headers import header_ranges
from meshnode.files.hub_mirror import Mirror, open_mirror
from meshnode.files.hub_outline import Outline, outline_of
from meshnode.files.hub_reference import HUB_PREFIX, HubReference
from meshnode.files.importing import require_space
from meshnode.files.layout import plan_shards
from meshnode.files.local_gguf import open_gguf
from meshnode.files.safetensors_folder import open_folder
from meshnode.files.source_file import FileRegion, open_source_file
from meshnode.files.sources import KeepShard, ModelOpener, Origin, ReportBytes, SourceModel
from meshnode.flow.lanes import Lanes

__all__ = ["HubSource"]


class _Opener(Protocol):
    def __call__(self, *, headers_only: bool) -> AbstractContextManager[SourceModel]: ...


@attrs.define(eq=False)
class _Fetched:
    """The files of one model, what has come of them, and what is to come."""

    files: Sequence[HubFile]
    mirrors: Sequence[Mirror]
    links: Sequence[Path]  # under names that say what they are
    wanted: list[set[int]] = attrs.field(init=False)  # blocks, file by file

    def __attrs_post_init__(self) -> None:
        self.wanted = [set() for _ in self.files]

    def opener(self, repository: HubRepository) -> _Opener:
        """Return what opens the model of these files."""
        origin = f"{repository.name}@{repository.commit[:12]}/{self.files[0].path}"
        return partial(_open, self.links[0], origin)

    def plan(self) -> list[tuple[HubFile, Mirror, set[int]]]:
        return list(zip(self.files, self.mirrors, self.wanted, strict=True))

    def progress(self) -> tuple[int, int]:
        """Bytes that have come, and that are to be there in the end."""
        held = sum(mirror.held_bytes(blocks) for _, mirror, blocks in self.plan())
        return held, sum(mirror.size_of(block) for _, mirror, blocks in self.plan() for block in blocks)

    @property
    def missing_bytes(self) -> int:
        held, total = self.progress()
        return total - held


@attrs.frozen(eq=False)
class HubSource:
    """The references that begin with `hf:`."""

    hub: Hub
    lanes: Lanes
    folder: Path  # of what has come, kept until the import is done
    examine: Callable[[SourceModel], object] = lambda model: model  # may refuse a model by its headers
    pause: float = 1.0  # seconds after a first failure

    def accepts(self, reference: str) -> bool:
        """Say whether `reference` begins with `hf:`."""
        return reference.startswith(HUB_PREFIX)

    def canonical(self, reference: str) -> str:
        """Return `reference`. Raises RequestError if it is malformed."""
        return str(HubReference.parse(reference))

    async def look(self, reference: str) -> Origin:
        """Return the commit, and a hash of what the hub says the model's files are there. Raises SourceUnavailable."""
        async with self.hub.connect() as connections:
            repository, files = await self._look_up(connections, reference)
        return Origin(reference, _version(files), HubReference.parse(reference).at(repository.commit))

    @asynccontextmanager
    async def prepared(
        self, reference: str, scratch: Path, report: ReportBytes, needs: KeepShard | None = None
    ) -> AsyncIterator[ModelOpener]:
        """Fetch the headers, then the bytes of the shards in `needs`, or all.

        What has come is kept for a next attempt until the model has been read. Raises SourceUnavailable, what opening the
        model raises, and FileError when the disk is full.
        """
        async with AsyncExitStack() as stack:
            connections = await stack.enter_async_context(self.hub.connect())
            repository, files = await self._look_up(connections, reference)
            fetched = await self._open_mirrors(files, scratch, stack)
            download = HubDownload(
                self.hub, connections, repository, self.lanes, self.pause, lambda: report(*fetched.progress())
            )
            await self._fetch_headers(download, fetched)
            opener = fetched.opener(repository)
            await self.lanes.run("hashing", self._plan, opener, fetched, needs)
            await self.lanes.run("disk", require_space, self.folder, 2 * fetched.missing_bytes)
            await download.fetch(fetched.plan())
            await self._check(fetched)
            try:
                yield partial(self._examined, partial(opener, headers_only=needs is not None))
            except SourceUnavailable as error:  # shards have other hashes than their manifest says
                await self._forget(fetched)
                raise SourceUnavailable(
                    f"{error}; what came has been thrown away, so another try fetches it anew"
                ) from error
            await self._forget(fetched)

    async def outline(self, reference: str, scratch: Path) -> Outline:
        """Return what a model's headers say, fetching them and no more. Raises what `prepared` does."""
        async with AsyncExitStack() as stack:
            connections = await stack.enter_async_context(self.hub.connect())
            repository, files = await self._look_up(connections, reference)
            fetched = await self._open_mirrors(files, scratch, stack)
            download = HubDownload(self.hub, connections, repository, self.lanes, self.pause, lambda: None)
            await self._fetch_headers(download, fetched)
            return await self.lanes.run("hashing", self._outline, repository, fetched)

    def _outline(self, repository: HubRepository, fetched: _Fetched) -> Outline:
        with fetched.opener(repository)(headers_only=True) as model:
            self.examine(model)
            places = {link: index for index, link in enumerate(fetched.links)}
            return outline_of(model, repository, fetched.files, places)

    async def _open_mirrors(self, files: Sequence[HubFile], scratch: Path, stack: AsyncExitStack) -> _Fetched:
        mirrors = [await self._open_mirror(file, stack) for file in files]
        return _Fetched(files, mirrors, await self.lanes.run("disk", _link, files, mirrors, scratch))

    async def _open_mirror(self, file: HubFile, stack: AsyncExitStack) -> Mirror:
        mirror = await self.lanes.run("hashing", open_mirror, self.folder, file.oid, file.nbytes)
        stack.callback(mirror.close)
        return mirror

    async def _look_up(
        self, connections: httpx.AsyncClient, reference: str
    ) -> tuple[HubRepository, tuple[HubFile, ...]]:
        parsed = HubReference.parse(reference)
        ask = partial(self.hub.repository, connections, parsed)
        repository = await patiently(ask, f"{self.hub.endpoint} was asked for {parsed.repository}", self.pause)
        return repository, choose_files(repository.files, parsed.pick)

    async def _fetch_headers(self, download: HubDownload, fetched: _Fetched) -> None:
        for index, (file, mirror) in enumerate(zip(fetched.files, fetched.mirrors, strict=True)):
            known = 0
            while True:
                ranges = await self.lanes.run("hashing", header_ranges, file, mirror.path, known)
                blocks = {block for start, end in ranges for block in mirror.blocks_of(start, end)}
                fetched.wanted[index] |= blocks
                if blocks <= mirror.held and known > 0:
                    break
                await download.fetch([(file, mirror, blocks)])
                known = ranges[0][1]

    def _plan(self, opener: _Opener, fetched: _Fetched, needs: KeepShard | None) -> None:
        """Look at the model's headers, and want the bytes of the shards in `needs`. Blocking."""
        with opener(headers_only=True) as model:
            self.examine(model)
            places = {link: index for index, link in enumerate(fetched.links)}
            for plan in plan_shards(model.config):
                if needs is None or not needs(plan.kind, plan.block):
                    continue
                for _, source in plan.tensors:
                    region = model.tensors[source].region
                    index = places[region.file.path]
                    blocks = fetched.mirrors[index].blocks_of(region.offset, region.offset + region.nbytes)
                    fetched.wanted[index].update(blocks)
        if needs is None:
            fetched.wanted = [set(mirror.blocks_of(0, mirror.nbytes)) for mirror in fetched.mirrors]

    async def _check(self, fetched: _Fetched) -> None:
        """Compare files that are whole with the hashes that the hub gives. Raises SourceUnavailable."""
        for file, mirror in zip(fetched.files, fetched.mirrors, strict=True):
            if mirror.is_whole and file.sha256 is not None:
                found = await self.lanes.run("hashing", _sha256, mirror.path)
                if found != file.sha256:
                    mirror.forget()
                    raise SourceUnavailable(
                        f"{file.path} came with other bytes than the hub says it has (SHA-256 {found}); what came has been "
                        "thrown away: try again"
                    )

    @contextmanager
    def _examined(self, opener: ModelOpener) -> Iterator[SourceModel]:
        with opener() as model:
            self.examine(model)
            yield model

    async def _forget(self, fetched: _Fetched) -> None:
        with trio.CancelScope(shield=True):  # the model may be in the catalog by now, and nobody would come back for it
            for mirror in fetched.mirrors:
                await self.lanes.run("disk", mirror.forget)


def _open(path: Path, origin: str, *, headers_only: bool) -> AbstractContextManager[SourceModel]:
    if path.suffix.lower() == ".gguf":
        return open_gguf(path, origin=origin)
    name = PurePosixPath(origin.split("@")[0]).name
    return open_folder(path.parent, name=name, origin=origin, headers_only=headers_only)


def _link(files: Sequence[HubFile], mirrors: Sequence[Mirror], scratch: Path) -> list[Path]:
    """Give mirrors the names that their files have, and return the paths. Blocking. Raises FileError."""
    is_gguf = files[0].name.lower().endswith(".gguf")
    links: list[Path] = []
    for file, mirror in zip(files, mirrors, strict=True):
        link = scratch / (file.name if is_gguf else file.path)  # a checkpoint's paths are known ones
        try:
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(mirror.path)
        except OSError as error:
            raise FileError(f"cannot write {link.name} to {scratch}: {error.strerror}") from error
        links.append(link)
    return links


def _sha256(path: Path) -> str:
    with open_source_file(path) as file:
        hasher = sha256()
        for piece in FileRegion(file, 0, file.nbytes).pieces():
            hasher.update(piece)
            trio.from_thread.check_cancelled()
    return hasher.hexdigest()


def _version(files: Sequence[HubFile]) -> str:
    return blake3("".join(f"{file.path}\n{file.oid}\n{file.nbytes}\n" for file in files).encode()).hexdigest()
