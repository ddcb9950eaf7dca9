"""Folders of Hugging Face checkpoints as a source: config.json, tokenizer.json, one or more safetensors files.

Tensors get GGUF's names. Their bytes are untouched; that query and key rows are in another order than in GGUF files is said
by `RopeStyle.HALVES`.
"""

import functools
import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import attrs
from blake3 import blake3

from meshnode.errors import InvalidModelFile, SourceUnavailable
from meshnode.files.bert_checkpoint import bert_tensor_name, checkpoint_pooling
from meshnode.files.checkpoint_config import checkpoint_config
from meshnode.files.checkpoint_names import llama_tensor_name
from meshnode.files.checkpoint_tokenizer import CheckpointTexts, checkpoint_tokenizer
from meshnode.files.layout import check_tensors
from meshnode.files.manifests import name_from_title
from meshnode.files.safetensors_header import SafetensorsEntry, read_safetensors
from meshnode.files.source_file import SourceFile, file_version, open_source_file
from meshnode.files.sources import KeepShard, ModelOpener, Origin, ReportBytes, SourceModel, SourceTensor
from meshnode.files.tokenizer_shard import check_tokenizer
from meshnode.files.typed_fields import TypedFields
from meshnode.flow.lanes import Lanes
from meshnode.types.manifest import ModelConfig, TensorDescriptor

__all__ = ["SafetensorsFolder", "open_folder"]

_MODULES, _POOLING = "modules.json", "1_Pooling/config.json"  # of sentence-transformers
_TEXT_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
    _MODULES,
    _POOLING,
)
_MAX_TEXT_BYTES = 128 << 20  # of one JSON file: the largest tokenizers have 35 MB
_MAX_FILES = 4096
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@attrs.frozen(eq=False)
class SafetensorsFolder:
    """References that are paths of folders."""

    lanes: Lanes = attrs.field(factory=Lanes)

    def accepts(self, reference: str) -> bool:
        """Say whether `reference` looks like a path."""
        return os.sep in reference or reference in (".", "..") or reference.startswith("~")

    def canonical(self, reference: str) -> str:
        """Return the absolute path."""
        return os.path.abspath(os.path.expanduser(reference))  # noqa: PTH100, PTH111  # text only, no symlinks followed

    async def look(self, reference: str) -> Origin:
        """Return the sizes and times of change of all files that are read. Raises SourceUnavailable."""
        return Origin(reference, await self.lanes.run("disk", _version, Path(reference)))

    @asynccontextmanager
    async def prepared(
        self,
        reference: str,
        scratch: Path,  # noqa: ARG002
        report: ReportBytes,  # noqa: ARG002
        needs: KeepShard | None = None,  # noqa: ARG002
    ) -> AsyncIterator[ModelOpener]:
        """Give what opens the folder; there is nothing to download."""
        yield functools.partial(open_folder, Path(reference))


def _version(folder: Path) -> str:
    _require_folder(folder)
    texts = [folder / name for name in _TEXT_FILES if (folder / name).exists()]
    return blake3("".join(file_version(path) for path in [*texts, *_weight_files(folder)]).encode()).hexdigest()


@contextmanager
def open_folder(
    folder: Path, *, name: str | None = None, origin: str | None = None, headers_only: bool = False
) -> Iterator[SourceModel]:
    """Open a checkpoint and check everything its headers say, and what it says twice unless `headers_only`.

    Its name and its origin are the folder's if not given. Raises SourceUnavailable, InvalidModelFile and UnsupportedModel.
    """
    _require_folder(folder)
    texts = CheckpointTexts(
        config=_json(folder, "config.json", required=True),
        tokenizer=_json(folder, "tokenizer.json", required=True),
        tokenizer_config=_json(folder, "tokenizer_config.json"),
        generation_config=_json(folder, "generation_config.json"),
        chat_template=_text(folder, "chat_template.jinja"),
    )
    config = checkpoint_config(texts.config, checkpoint_pooling(_values(folder, _MODULES), _json(folder, _POOLING)))
    tokenizer = checkpoint_tokenizer(texts, config.vocabulary_size)
    check_tokenizer(tokenizer)
    with ExitStack() as stack:
        files = tuple(stack.enter_context(open_source_file(path)) for path in _weight_files(folder))
        tensors = _tensors(files, config, headers_only=headers_only)
        check_tensors(config, {name: tensor.descriptor for name, tensor in tensors.items()})
        yield SourceModel(
            name=name_from_title(name or folder.resolve().name),
            config=config,
            tokenizer=tokenizer,
            tensors=tensors,
            files=files,
            origin=origin or folder.name,
        )


def _require_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise SourceUnavailable(f"there is no folder {folder}")


def _text(folder: Path, name: str) -> str | None:
    path = folder / name
    if not path.exists():
        return None
    with open_source_file(path) as file:
        if file.nbytes > _MAX_TEXT_BYTES:
            raise InvalidModelFile(f"{name} has {file.nbytes} bytes, more than {_MAX_TEXT_BYTES}")
        try:
            return file.prefix(file.nbytes).decode()
        except UnicodeDecodeError as error:
            raise InvalidModelFile(f"{name} is not UTF-8") from error


def _json(folder: Path, name: str, *, required: bool = False) -> TypedFields:
    values = _values(folder, name)
    if values is None:
        if required:
            raise SourceUnavailable(f"there is no {name} in {folder}; it is needed to import a checkpoint")
        return TypedFields({}, name)
    if not isinstance(values, dict):
        raise InvalidModelFile(f"{name} is not a JSON object")
    return TypedFields(values, name)


def _values(folder: Path, name: str) -> object:
    """Return what a JSON file holds; None without one."""
    text = _text(folder, name)
    try:
        return None if text is None else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidModelFile(f"{name} is not JSON: {error}") from error


def _weight_files(folder: Path) -> list[Path]:
    single, index = folder / "model.safetensors", "model.safetensors.index.json"
    if single.exists():
        return [single]
    if not (folder / index).exists():
        raise SourceUnavailable(f"there is neither model.safetensors nor {index} in {folder}")
    places = _json(folder, index).need("weight_map", dict)
    names = {name for name in places.values() if isinstance(name, str)}
    for name in names:
        # The index may come from anybody, and must not make us read files elsewhere. Symbolic links are followed: the
        # Hugging Face cache consists of them.
        if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
            raise InvalidModelFile(f"{index} names {name[:80]!r}, which is not the name of a file in the folder")
    if not 1 <= len(names) <= _MAX_FILES:
        raise InvalidModelFile(f"{index} names {len(names)} files")
    return [folder / name for name in sorted(names)]


def _tensors(files: tuple[SourceFile, ...], config: ModelConfig, *, headers_only: bool) -> dict[str, SourceTensor]:
    entries: dict[str, SafetensorsEntry] = {}
    for file in files:
        for entry in read_safetensors(file):
            if entry.name in entries:
                raise InvalidModelFile(f"tensor {entry.name!r} appears twice")
            entries[entry.name] = entry
    if config.tied_embedding:
        _drop_tied_head(entries, compare=not headers_only)
    named = bert_tensor_name if config.architecture == "bert" else llama_tensor_name
    tensors: dict[str, SourceTensor] = {}
    for entry in entries.values():
        name = named(entry.name)
        if name is not None:
            descriptor = TensorDescriptor(name, entry.ggml_type, entry.shape, entry.region.nbytes)
            tensors[name] = SourceTensor(descriptor, entry.region)
    return tensors


def _drop_tied_head(entries: dict[str, SafetensorsEntry], *, compare: bool) -> None:
    """Drop the copy of the embedding that some tied checkpoints carry; one that differs is an error, not a choice."""
    head, embedding = entries.pop(_HEAD, None), entries.get(_EMBEDDING)
    if head is None or embedding is None or not compare:
        return
    if head.region.nbytes != embedding.region.nbytes or any(
        left != right for left, right in zip(head.region.pieces(), embedding.region.pieces(), strict=True)
    ):
        raise InvalidModelFile(f"the checkpoint ties its head to its embedding, but {_HEAD} is another matrix")
