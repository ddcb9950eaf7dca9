"""The steps of an update: look, judge, fetch, unpack, point at it. None of them changes what runs before a restart."""

import datetime
import platform
import sysconfig
from collections.abc import Callable
from pathlib import Path

import attrs
import trio
from blake3 import blake3
from packaging.version import Version

from meshnode.errors import UpdateBlocked
from meshnode.flow.lanes import Lanes
from meshnode.update.fetching import Limits, connect, fetch_artifact, fetch_document
from meshnode.update.pointer import load_pointer, load_seen, save_seen
from meshnode.update.release import (
    Release,
    Verified,
    check_expiry,
    check_python,
    check_rollback,
    choose_artifact,
    verify_release,
)
from meshnode.update.slots import DOWNLOADS, fill_slot, remove_slots
from meshnode.update.trial import activate

__all__ = ["Publisher", "Updater", "this_platform"]


def this_platform() -> str:
    """Return the tag of this machine, such as linux_x86_64."""
    return sysconfig.get_platform().replace("-", "_").replace(".", "_").lower()


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


@attrs.frozen
class Publisher:
    """Where releases come from, and by what they are known."""

    url: str
    keys: frozenset[bytes]
    threshold: int
    channel: str

    @property
    def stream(self) -> str:
        """What its sequences count in: they begin anew in another channel, and with others' keys."""
        return f"{self.channel}/{blake3(b''.join(sorted(self.keys))).hexdigest()[:16]}"


@attrs.frozen(eq=False)
class Updater:
    """Knows where things lie; keeps no state of its own."""

    publisher: Publisher
    folder: Path  # <data>/updates
    running: str  # version
    lanes: Lanes
    limits: Limits = attrs.field(factory=Limits)
    platform: str = attrs.field(factory=this_platform)
    now: Callable[[], datetime.datetime] = _now

    async def look(self) -> Verified:
        """Return the release that is published now, verified and remembered. Raises UpdateUnavailable, ReleaseRefused."""
        publisher = self.publisher
        async with connect(self.limits, self.lanes) as client:
            document = await fetch_document(client, publisher.url, self.limits)
        verified = verify_release(
            document,
            keys=publisher.keys,
            threshold=publisher.threshold,
            channel=publisher.channel,
            now=self.now(),
        )
        seen = await self.lanes.run("disk", load_seen, self.folder, publisher.stream)
        check_rollback(verified, seen)
        if verified.seen() != seen:
            await self.lanes.run("disk", save_seen, self.folder, publisher.stream, verified.seen())
        return verified

    def is_newer(self, release: Release) -> bool:
        """Whether it is newer than what runs."""
        return Version(release.version) > Version(self.running)

    async def failed(self) -> dict[str, str]:
        """Return the versions that were taken back, and why. Raises UpdateError."""
        return (await self.lanes.run("disk", load_pointer, self.folder)).failed

    async def install(self, release: Release) -> None:
        """Fetch a release and have the next start try it.

        Raises UpdateBlocked where it does not fit here, ReleaseRefused, UpdateUnavailable, UpdateError; then everything is as
        it was. Cancellation too leaves nothing half done.
        """
        failed = await self.failed()
        if release.version in failed:
            raise UpdateBlocked(
                f"meshnode {release.version} was tried here and taken back: {failed[release.version]}; wait for a newer one"
            )
        check_expiry(release, self.now())  # a node may have been busy for days since it was looked at
        check_python(release, platform.python_version())
        artifact = choose_artifact(release, self.platform)
        wheel = self.folder / DOWNLOADS / f"meshnode-{release.version}-py3-none-any.whl"  # whatever it was called there
        try:
            async with connect(self.limits, self.lanes) as client:
                await fetch_artifact(client, self.publisher.url, artifact, wheel, self.lanes, self.limits)
            await fill_slot(wheel, release.version, self.folder, self.lanes)
        finally:
            with trio.CancelScope(shield=True):
                await self.lanes.run("disk", _unlink, wheel)
        await self.lanes.run("disk", activate, self.folder, release.version)
        await self.tidy()

    async def tidy(self) -> None:
        """Delete what no start needs: versions that are past, and what an install left that was killed. Raises UpdateError."""
        pointer = await self.lanes.run("disk", load_pointer, self.folder)
        await self.lanes.run("disk", remove_slots, self.folder, (pointer.current, pointer.previous))


def _unlink(path: Path) -> None:
    path.unlink(missing_ok=True)
