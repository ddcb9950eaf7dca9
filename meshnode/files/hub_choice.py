"""Which files of a repository make the model that somebody asked for: pure, from the list of its files."""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

import attrs

from meshnode.errors import InvalidModelFile, SourceUnavailable

__all__ = ["HubFile", "choose_files"]

_DEFAULTS = ("Q4_K_M", "Q4_K_S", "Q4_0", "Q4_1", "Q5_K_M", "Q5_K_S", "Q6_K", "Q8_0", "BF16", "F16", "F32")
"""Without a wish: four bits first, which is what most machines have room for, then what is nearest."""

_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
_NOT_MODELS = re.compile(r"(?:^|[-._/])(?:mmproj|imatrix)(?:[-._]|$)", re.IGNORECASE)  # projectors, calibration data
_CHECKPOINT = re.compile(
    r"(?:config|tokenizer|tokenizer_config|generation_config|modules|model\.safetensors\.index)\.json"
    r"|1_Pooling/config\.json|chat_template\.jinja|model(?:-\d{5}-of-\d{5})?\.safetensors"
)


@attrs.frozen
class HubFile:
    """One file of a repository."""

    path: str  # inside the repository, with slashes
    nbytes: int
    oid: str  # changes when the bytes do, and is no other file's
    sha256: str | None = None  # of the bytes, for large files

    @property
    def name(self) -> str:
        """The last part of its path."""
        return PurePosixPath(self.path).name


def choose_files(files: Sequence[HubFile], pick: str | None) -> tuple[HubFile, ...]:
    """Return the GGUF file that `pick` names, all of its parts in order, or the files of a safetensors checkpoint.

    Raises SourceUnavailable for a pick that is not there or could mean several, saying what there is, and InvalidModelFile
    when parts are missing.
    """
    models = _models(files)
    if pick is not None:
        return _picked(models, files, pick)
    for quant in _DEFAULTS:
        if found := [parts for parts in models if _has_quant(parts[0], quant)]:
            return _complete(min(found, key=lambda parts: (len(parts[0].path), parts[0].path)))
    if len(models) == 1:
        return _complete(models[0])
    checkpoint = tuple(file for file in files if _CHECKPOINT.fullmatch(file.path))
    if not models and any(file.path.endswith(".safetensors") for file in checkpoint):
        return checkpoint
    if not models:
        raise SourceUnavailable("the repository has neither a GGUF file nor a safetensors checkpoint")
    raise SourceUnavailable(f"say which model of the repository, by its file: {_listed(models)}")


def _models(files: Sequence[HubFile]) -> list[tuple[HubFile, ...]]:
    """Return the GGUF models, each with its parts in order."""
    found: dict[str, list[HubFile]] = {}
    for file in sorted(files, key=lambda file: file.path):
        if file.path.lower().endswith(".gguf") and not _NOT_MODELS.search(file.path):
            found.setdefault(_PART.sub(".gguf", file.path), []).append(file)
    return [tuple(parts) for parts in found.values()]


def _picked(models: list[tuple[HubFile, ...]], files: Sequence[HubFile], pick: str) -> tuple[HubFile, ...]:
    if pick.lower() == "safetensors":
        checkpoint = tuple(file for file in files if _CHECKPOINT.fullmatch(file.path))
        if any(file.path.endswith(".safetensors") for file in checkpoint):
            return checkpoint
        raise SourceUnavailable("the repository has no safetensors checkpoint")
    for found in (
        [parts for parts in models if any(pick == file.path for file in parts)],
        [parts for parts in models if any(pick == file.name for file in parts)],
        [parts for parts in models if _has_quant(parts[0], pick)],
    ):
        if len(found) == 1:
            return _complete(found[0])
        if found:
            raise SourceUnavailable(f"{pick!r} could be {_listed(found)}; name the file")
    raise SourceUnavailable(f"the repository has no {pick!r}; it has: {_listed(models) or 'no GGUF file'}")


def _has_quant(file: HubFile, quant: str) -> bool:
    path = _PART.sub(".gguf", file.path)
    return re.search(rf"(?:^|[-._/]){re.escape(quant)}(?:[-._/]|$)", path, re.IGNORECASE) is not None


def _complete(parts: tuple[HubFile, ...]) -> tuple[HubFile, ...]:
    numbered = [found for file in parts if (found := _PART.search(file.path))]
    if not numbered:
        return parts
    expected = int(numbered[0][2])
    if [(int(found[1]), int(found[2])) for found in numbered] != [(n + 1, expected) for n in range(expected)]:
        raise InvalidModelFile(f"{parts[0].path} has {expected} parts, and the repository does not have all of them")
    return parts


def _listed(models: Sequence[tuple[HubFile, ...]]) -> str:
    names = [parts[0].path for parts in models]
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
