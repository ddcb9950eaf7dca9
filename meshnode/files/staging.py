"""The folder of unfinished things, `<data>/partial`, one subfolder per acquisition or removal.

Shards are written here and moved to their place when the catalog knows them, and moved here before the catalog forgets them.
So after a crash at any moment a shard file in this folder is either wanted by the catalog, and is moved (back) to its place, or
garbage; and a shard file in its place is always wanted.

What has come of a hub's files lies elsewhere, and links in the subfolder lead there. It is needed until the catalog keeps what
was made of it, and a crash may fall between that and its deletion: what the catalog is going to keep is noted beside the links.
"""

import secrets
import shutil
from collections.abc import Iterable, Set
from contextlib import suppress
from pathlib import Path

from meshnode.config.paths import DataPaths
from meshnode.errors import FileError
from meshnode.files.hub_mirror import forget_linked
from meshnode.files.shard_file import is_shard_id, publish_shard, shard_file_name, shard_path
from meshnode.types.ids import ShardId

__all__ = ["delete_quarantined", "discard", "in_place", "make_staging", "note_kept", "park", "publish", "tidy"]

_KEPT = "kept.ids"


def make_staging(partial: Path) -> Path:
    """Make a new subfolder. Raises FileError."""
    folder = partial / secrets.token_hex(8)
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise FileError(f"cannot write to the data folder {partial.parent}: {error.strerror}") from error
    return folder


def note_kept(staging: Path, ids: Iterable[ShardId]) -> None:
    """Note what the catalog is going to keep of a model, once all of it is here. Raises FileError."""
    try:
        written = staging / f"{_KEPT}.writing"
        written.write_text("\n".join(ids), encoding="ascii")
        written.replace(staging / _KEPT)
    except OSError as error:
        raise FileError(
            f"cannot write to {staging}: {error.strerror}; free space or choose another data folder"
        ) from error


def publish(staging: Path, shards: Path, ids: Iterable[ShardId]) -> frozenset[ShardId]:
    """Move those of these shards that are in `staging` to their place and return them. Raises FileError."""
    there = [shard for shard in ids if (staging / shard_file_name(shard)).exists()]
    for shard in there:
        publish_shard(staging, shards, shard)
    return frozenset(there)


def park(staging: Path, shards: Path, ids: Iterable[ShardId]) -> None:
    """Move those of these shards that are in their place into `staging`. Raises FileError."""
    for shard in ids:
        try:
            shard_path(shards, shard).replace(staging / shard_file_name(shard))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise FileError(f"cannot remove shard {shard[:12]} from {shards}: {error.strerror}") from error


def delete_quarantined(quarantine: Path, ids: Iterable[ShardId]) -> None:
    """Delete the quarantined copies of these shards, as far as the system lets us."""
    for shard in ids:
        with suppress(OSError):
            (quarantine / shard_file_name(shard)).unlink()


def discard(folder: Path) -> None:
    """Delete a subfolder as far as the system lets us; the next start tries again."""
    shutil.rmtree(folder, ignore_errors=True)


def tidy(paths: DataPaths, wanted: Set[ShardId]) -> int:
    """Finish or forget what an earlier process left behind. Returns how many shards were moved to their place.

    Raises FileError when the system does not let us; nothing wanted is lost then.
    """
    partial, shards = paths.partial, paths.shards
    moved = 0
    try:
        for note in partial.glob(f"*/{_KEPT}"):  # before shards are moved: a crash in between comes here again
            if wanted >= set(note.read_text(encoding="ascii", errors="replace").split()):
                forget_linked(note.parent)
        for path in sorted(partial.rglob("*.shard")):
            shard = ShardId(path.stem)
            if is_shard_id(shard) and shard in wanted and not shard_path(shards, shard).exists():
                publish_shard(path.parent, shards, shard)
                moved += 1
        for folder in partial.iterdir() if partial.is_dir() else ():
            if folder.is_dir() and not folder.is_symlink():
                discard(folder)
            else:
                folder.unlink(missing_ok=True)
        delete_quarantined(paths.quarantine, {ShardId(path.stem) for path in paths.quarantine.glob("*.shard")} - wanted)
    except OSError as error:
        raise FileError(f"cannot tidy {partial}: {error.strerror}") from error
    return moved


def in_place(shards: Path, wanted: Iterable[ShardId]) -> frozenset[ShardId]:
    """Return which of these shards are in their place, verified or not."""
    return frozenset(shard for shard in wanted if shard_path(shards, shard).exists())
