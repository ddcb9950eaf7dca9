"""A model in a folder, as `models export` writes it: its manifest and its shards, to be carried on a stick.

<folder>/manifest.msgpack        the manifest; true by its hash, like one from a peer
<folder>/<shard>.shard           every shard that the exporting node held
"""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from blake3 import blake3

from meshnode.errors import FileError, InvalidModelFile, ShardCorrupt, SourceUnavailable
from meshnode.files.foreign_manifests import decode_manifest, encode_manifest, manifest_id_of
from meshnode.files.shard_file import shard_file_name
from meshnode.types.ids import ShardId, short
from meshnode.types.manifest import ModelManifest, ShardDescriptor
from meshnode.types.parts import Parts

__all__ = ["copy_shards", "export_model", "is_shard_folder", "read_manifest", "shard_folder_at"]

_MANIFEST = "manifest.msgpack"
_MAX_MANIFEST = 64 << 20
_PIECE = 4 << 20


def is_shard_folder(path: Path) -> bool:
    """Say whether a folder is one that was exported."""
    return (path / _MANIFEST).is_file()


def shard_folder_at(reference: str) -> Path | None:
    """Return the exported folder that a reference names, None if it names something else. Blocking."""
    try:
        path = Path(reference).expanduser().absolute()
        return path if is_shard_folder(path) else None
    except (OSError, RuntimeError, ValueError):  # a home that nobody has, a NUL byte
        return None


def export_model(manifest: ModelManifest, held: Sequence[tuple[ShardId, Path]], target: Path) -> int:
    """Write a model into `target`, which may hold an earlier export of it, and return the bytes of its shards. Blocking.

    Raises FileError when it cannot be written, and when the folder holds another model.
    """
    try:
        target.mkdir(parents=True, exist_ok=True)
        if is_shard_folder(target) and read_manifest(target).id != manifest.id:
            raise FileError(f"{target} holds another model already; choose another folder")
        total = 0
        for shard, path in held:
            place = target / shard_file_name(shard)
            if not _is_whole(place, shard):  # what was exported before, and may have suffered on the way
                partial = place.with_suffix(".part")
                shutil.copyfile(path, partial)
                partial.replace(place)
            total += path.stat().st_size
        (target / _MANIFEST).write_bytes(encode_manifest(manifest))
        os.sync()
    except OSError as error:
        raise FileError(f"cannot export to {target}: {error.strerror}; free space or choose another folder") from error
    return total


def _is_whole(place: Path, shard: ShardId) -> bool:
    if not place.exists():
        return False
    hasher = blake3()
    with place.open("rb") as file:
        while piece := file.read(_PIECE):
            hasher.update(piece)
    return hasher.hexdigest() == shard


def read_manifest(folder: Path) -> ModelManifest:
    """Return the manifest of an exported model, checked. Blocking. Raises FileError leafs."""
    try:
        with (folder / _MANIFEST).open("rb") as file:
            data = file.read(_MAX_MANIFEST + 1)
    except OSError as error:
        raise SourceUnavailable(f"{folder} cannot be read: {error.strerror}") from error
    if len(data) > _MAX_MANIFEST:
        raise InvalidModelFile(f"the manifest in {folder} is longer than {_MAX_MANIFEST >> 20} MiB")
    return decode_manifest(data, manifest_id_of(data))


def copy_shards(
    folder: Path, shards: Sequence[ShardDescriptor], staging: Path, report: Callable[[int, int], None]
) -> None:
    """Copy shards into `staging`, each verified on the way. Blocking; what `report` raises ends it.

    Raises SourceUnavailable, before anything is copied, when the folder does not have them all, ShardCorrupt for one with other
    bytes, FileError.
    """
    lacking = [shard for shard in shards if not (folder / shard_file_name(shard.id)).is_file()]
    if lacking:
        there = Parts.of(shard for shard in shards if shard not in lacking)
        raise SourceUnavailable(
            f"of what is not here yet, {folder} has {there or 'nothing'}, and lacks {Parts.of(lacking)}; name with --blocks "
            "what it has"
        )
    done, total = 0, sum(shard.nbytes for shard in shards)
    for shard in shards:
        hasher = blake3()
        try:
            with (folder / shard_file_name(shard.id)).open("rb") as source, (staging / "copying").open("wb") as target:
                while piece := source.read(_PIECE):
                    hasher.update(piece)
                    target.write(piece)
                    done += len(piece)
                    report(done, total)
                target.flush()
                os.fsync(target.fileno())
            if hasher.hexdigest() != shard.id:
                raise ShardCorrupt(f"shard {short(shard.id)} in {folder} has other bytes than the manifest says")
            (staging / "copying").replace(staging / shard_file_name(shard.id))
        except OSError as error:
            raise FileError(f"cannot copy from {folder}: {error.strerror}") from error
