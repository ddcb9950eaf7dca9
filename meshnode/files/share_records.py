"""What is known on the disk of shares: beside what has come and what was made of it, among the transfers.

A record says what a share is, and what its shards hash to once they are made. It is believed as far as the bytes are as it says:
so a restart costs no byte, and a share that nobody will ask for again is found and deleted, with all that belongs to it. Shares
of several models, or for several peers, lie side by side: what two of them have in common stays until the last of them goes.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import attrs
import msgspec
from blake3 import blake3

from meshnode.errors import FileError
from meshnode.files.hub_choice import HubFile
from meshnode.files.hub_mirror import forget_mirror, mirror_written
from meshnode.files.hub_shares import HubShare, check_made
from meshnode.files.shard_file import HashedBytes, hash_pieces
from meshnode.files.source_file import FileRegion, open_source_file
from meshnode.types.ids import PeerId, ShardId

__all__ = ["Leftovers", "ShareRecord", "ShareRecords", "forget_records"]

_LENT, _OWN, _WRITING = ".lent", ".share", ".writing"
_BEGUN = 3600.0  # seconds that what has come of a share is kept for whoever began it and went
_MADE = 86400.0  # and a share that was made: the others of its model may take as long


@attrs.frozen
class ShareRecord:
    """What is known of one share."""

    share: HubShare
    made: tuple[HashedBytes, ...] = ()  # what it was made into; (): it is being made
    askers: tuple[PeerId, ...] = ()  # the peers that it is for


@attrs.frozen
class ShareRecords:
    """Of this node's own shares, or of those that it makes for others. All methods block, and raise FileError."""

    folder: Path
    lent: bool  # for others

    def put(self, share: HubShare, made: tuple[HashedBytes, ...] = ()) -> None:
        """Note that a share is being made, or what it hashes to."""
        self._write(attrs.evolve(self._record(share), made=made))

    def claim(self, share: HubShare, asker: PeerId) -> None:
        """Note whom a share is for, besides those it was for before."""
        before = self._record(share)
        self._write(attrs.evolve(before, askers=tuple(dict.fromkeys((*before.askers, asker)))))

    def made(self, share: HubShare) -> tuple[HashedBytes, ...]:
        """Return what a share was made into, if all of it is still there; its bytes are read."""
        made = self._record(share).made
        return made if all(map(self._is_there, made)) else ()

    def all(self) -> Iterator[ShareRecord]:
        """Yield all records; those that say nothing are deleted."""
        for path in sorted(self.folder.glob(f"*{self._suffix}")) if self.folder.is_dir() else ():
            if (record := self._read(path)) is not None:
                yield record
            else:
                with suppress(OSError):
                    path.unlink()

    def drop(self, share: HubShare, others: Iterable[ShareRecord] = ()) -> None:
        """Delete what has come of a share, what was made of it and not taken, and the record, but for what `others` need."""
        spared, needed = set[str](), set[HashedBytes]()
        for record in others:
            spared.update(self.mirror_key(record.share, file) for file in record.share.files)
            needed.update(record.made)
        try:
            for hashed in set(self._record(share).made) - needed:
                self.part(hashed).unlink(missing_ok=True)
            for key in {self.mirror_key(share, file) for file in share.files} - spared:
                forget_mirror(self.folder, key)
            self._path(share).unlink(missing_ok=True)
        except OSError as error:
            raise FileError(f"cannot tidy {self.folder}: {error.strerror}") from error

    def drop_taken(self, is_here: Callable[[ShardId], bool]) -> list[ShareRecord]:
        """Delete shares whose shards have all been taken to their place, and return what was known of them."""
        left = list(self.all())
        taken = [record for record in left if record.made and all(is_here(hashed.id) for hashed in record.made)]
        for record in taken:
            left.remove(record)
            self.drop(record.share, left)
        return taken

    def mirror_key(self, share: HubShare, file: HubFile) -> str:
        """Return what the mirror of a file is known by.

        What a peer says of a file may be wrong: were its mirror the one of this node's own download of a file with that hash, the
        peer could have it cut short or deleted, or fill it from a repository of its own.
        """
        return f"lent {share.repository} {file.nbytes} {file.oid}" if self.lent else file.oid

    def part(self, hashed: HashedBytes) -> Path:
        """Return where a shard that was made lies until it is taken."""
        return self.folder / f"{hashed.id}.part"

    def written(self, share: HubShare) -> float:
        """Return when anything was last written of a share, in whatever time the disk has."""
        path = self._path(share)
        return max(
            [
                path.stat().st_mtime if path.exists() else 0.0,
                *(mirror_written(self.folder, self.mirror_key(share, each)) for each in share.files),
            ]
        )

    @property
    def _suffix(self) -> str:
        return _LENT if self.lent else _OWN

    def _path(self, share: HubShare) -> Path:
        return self.folder / f"{blake3(msgspec.msgpack.encode(share)).hexdigest()[:32]}{self._suffix}"

    def _record(self, share: HubShare) -> ShareRecord:
        return self._read(self._path(share)) or ShareRecord(share)

    def _read(self, path: Path) -> ShareRecord | None:
        try:
            record = msgspec.msgpack.decode(path.read_bytes(), type=ShareRecord)
            if record.made:
                check_made(record.made, record.share)
        except (OSError, ValueError):
            return None
        return record

    def _write(self, record: ShareRecord) -> None:
        path = self._path(record.share)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            path.with_suffix(_WRITING).write_bytes(msgspec.msgpack.encode(record))
            path.with_suffix(_WRITING).replace(path)
        except OSError as error:
            raise FileError(f"cannot write to {self.folder}: {error.strerror}") from error

    def _is_there(self, hashed: HashedBytes) -> bool:
        try:
            with open_source_file(self.part(hashed)) as file:
                return hash_pieces(FileRegion(file, 0, file.nbytes).pieces()) == hashed
        except FileError:
            return False


@attrs.define(eq=False)
class Leftovers:
    """Lent shares that nobody has come back for. Ages are told by the caller's clock: that of the disk may jump."""

    records: ShareRecords
    # When each was last written to, by the disk, and since when that has been so.
    _seen: dict[HubShare, tuple[float, float]] = attrs.field(factory=dict, init=False)

    def sweep(self, now: float) -> None:
        """Delete what has been as it is for too long. Blocking. Raises FileError."""
        left = {record.share: record for record in self.records.all()}
        seen: dict[HubShare, tuple[float, float]] = {}
        for share, record in list(left.items()):
            written = self.records.written(share)
            before, since = self._seen.get(share, (written, now))
            seen[share] = (written, since if before == written else now)
            if now - seen[share][1] >= (_MADE if record.made else _BEGUN):
                del left[share]
                self.records.drop(share, left.values())
        self._seen = seen


def forget_records(folder: Path, oldest: float) -> None:
    """Delete records that were written before `oldest` (Unix seconds). Blocking. Raises FileError."""
    try:
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.suffix in (_LENT, _OWN, _WRITING) and path.stat().st_mtime < oldest:
                path.unlink(missing_ok=True)
    except OSError as error:
        raise FileError(f"cannot tidy {folder}: {error.strerror}") from error
