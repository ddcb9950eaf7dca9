"""A version's own folder, `<data>/updates/slots/<version>`: a wheel of meshnode, unpacked by pip, and nothing beside it.

Its dependencies are those of the installation. A release that needs others is refused with the command that gets them.
"""

import importlib.metadata
import os
import platform
import shlex
import shutil
import stat
import sys
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

import trio
from packaging.metadata import parse_email
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from meshnode.errors import ReleaseRefused, UpdateBlocked, UpdateError
from meshnode.files.pip_process import run_pip
from meshnode.flow.lanes import Lanes
from meshnode.update.fetching import no_space
from meshnode.update.pointer import slot_of, sync_folder
from meshnode.update.release import PRODUCT

__all__ = ["DOWNLOADS", "fill_slot", "installed_version", "remove_slots", "unmet"]

DOWNLOADS = "downloads"
_TEMPORARY = "pip"
_MAX_UNPACKED = 1 << 30  # bytes
_MAX_MEMBERS = 20_000

InstalledVersion = Callable[[str], str | None]


def installed_version(name: str) -> str | None:
    """Return the version of an installed distribution; None: it is not there."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


async def fill_slot(
    wheel: Path, version: str, folder: Path, lanes: Lanes, installed: InstalledVersion = installed_version
) -> Path:
    """Unpack a wheel of meshnode into the slot of `version` below `folder`, and return the slot, whole and on the disk.

    Cancellation ends pip. Raises ReleaseRefused for a wheel that is not what it should be, UpdateBlocked for what this
    machine lacks, UpdateError when it cannot be written; then there is no slot.
    """
    requirements = await lanes.run("disk", _examine, wheel, version)
    lacking = unmet(requirements, installed)
    if lacking:
        command = shlex.join([sys.executable, "-m", "pip", "install", *map(str, lacking)])
        has = ", ".join(f"{each.name} {installed(each.name) or 'not at all'}" for each in lacking)
        raise UpdateBlocked(
            f"meshnode {version} needs {', '.join(map(str, lacking))}, and installed are: {has}. Run `{command}`, and then "
            "`meshnode update apply`"
        )
    slot = slot_of(folder, version)
    fresh, temporary = slot.with_name(f"{version}.new"), folder / _TEMPORARY
    try:
        with no_space(folder):
            await lanes.run("disk", _prepare, fresh, temporary)
            arguments = ("install", "--isolated", "--no-deps", "--no-index", "--target", str(fresh), str(wheel))
            result = await run_pip(arguments, temporary)
            if result.is_disk_full:
                raise UpdateError(f"the disk of {folder} is full; free some space, and the next look goes on")
            if result.code != 0:
                raise UpdateError(f"pip could not unpack meshnode {version}: {result.said}")
            await lanes.run("disk", _settle, fresh, slot)
    finally:
        with trio.CancelScope(shield=True):
            await lanes.run("disk", _discard, fresh, temporary)
    return slot


def unmet(requirements: Iterable[Requirement], installed: InstalledVersion) -> list[Requirement]:
    """Return the requirements that what is installed does not meet."""
    return [
        each
        for each in requirements
        if (each.marker is None or each.marker.evaluate({"extra": ""})) and not _is_met(each, installed(each.name))
    ]


def remove_slots(folder: Path, keep: Iterable[str | None]) -> None:
    """Delete every slot but those of the versions to keep, and all that an install works with. Raises UpdateError."""
    kept = set(keep)
    with no_space(folder):
        for slot in (folder / "slots").glob("*"):
            if slot.name not in kept:
                shutil.rmtree(slot, ignore_errors=True)
        _discard(folder / DOWNLOADS, folder / _TEMPORARY)


def _is_met(requirement: Requirement, version: str | None) -> bool:
    return version is not None and requirement.specifier.contains(version, prereleases=True)


def _examine(wheel: Path, version: str) -> tuple[Requirement, ...]:
    """See to it that the wheel holds meshnode in this version and nothing else, and return what it requires."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            _check_members(archive.infolist(), version)
            text = archive.read(f"{PRODUCT}-{version}.dist-info/METADATA")
    except (zipfile.BadZipFile, KeyError, EOFError, NotImplementedError) as error:
        raise ReleaseRefused(f"the artifact of {version} is no wheel of meshnode {version}: {error}") from error
    metadata, _ = parse_email(text)
    try:
        if canonicalize_name(metadata.get("name", "")) != PRODUCT or Version(metadata["version"]) != Version(version):
            raise ReleaseRefused(
                f"the artifact of meshnode {version} is {metadata.get('name')} {metadata.get('version')}"
            )
        python = SpecifierSet(metadata.get("requires_python", ""))
        requirements = tuple(Requirement(each) for each in metadata.get("requires_dist", ()))
    except (KeyError, InvalidVersion, InvalidSpecifier, InvalidRequirement) as error:
        raise ReleaseRefused(f"the wheel of meshnode {version} has no good metadata: {error}") from error
    if not python.contains(platform.python_version(), prereleases=True):
        raise UpdateBlocked(f"meshnode {version} needs Python {python}, and this is {platform.python_version()}")
    return requirements


def _check_members(members: list[zipfile.ZipInfo], version: str) -> None:
    """Take what lies in our package and its metadata, and nothing that could come to lie anywhere else."""
    if len(members) > _MAX_MEMBERS or sum(member.file_size for member in members) > _MAX_UNPACKED:
        raise ReleaseRefused(f"the wheel of meshnode {version} would unpack to more than {_MAX_UNPACKED} bytes")
    roots = (PRODUCT, f"{PRODUCT}-{version}.dist-info")
    for member in members:
        name = member.orig_filename
        parts = PurePosixPath(name).parts
        if (
            not parts
            or parts[0] not in roots
            or ".." in parts
            or "\\" in name
            or not name.isprintable()
            or stat.S_ISLNK(member.external_attr >> 16)
        ):
            raise ReleaseRefused(
                f"the wheel of meshnode {version} has a file that does not belong there: {name[:200]!r}"
            )


def _prepare(fresh: Path, temporary: Path) -> None:
    _discard(fresh, temporary)
    for place in (fresh, temporary):
        place.mkdir(mode=0o700, parents=True)


def _settle(fresh: Path, slot: Path) -> None:
    """Bring all of it to the disk, and then give it its name."""
    for place, _, names in os.walk(fresh):
        for name in names:
            with (Path(place) / name).open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(place))
    shutil.rmtree(slot, ignore_errors=True)  # of the same version, from a try that ended before the pointer was set
    fresh.replace(slot)
    sync_folder(slot.parent)


def _discard(*places: Path) -> None:
    for place in places:
        shutil.rmtree(place, ignore_errors=True)
