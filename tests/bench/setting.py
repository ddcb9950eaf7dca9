"""What all measurements share: one model, once as a file, once imported, once in a node's data folder."""

from functools import cached_property
from pathlib import Path

import attrs
from starter import add_starter, starter_gguf
from support.stages import stage_of

from meshnode.engine.stage_model import StageModel
from meshnode.files.importing import import_gguf
from meshnode.types.manifest import ModelManifest


@attrs.define(eq=False, slots=False)
class Setting:
    """Made on demand, so that one measurement alone does not wait for what it does not use."""

    folder: Path
    threads: int
    rounds: int

    @cached_property
    def gguf(self) -> Path:
        return starter_gguf(self.folder)

    @cached_property
    def manifest(self) -> ModelManifest:
        return import_gguf(self.gguf, self.folder / "shards")

    @cached_property
    def data_folder(self) -> Path:
        """A node's data folder that holds the starter."""
        folder = self.folder / "node"
        add_starter(folder)
        return folder

    def stage(self, context: int = 2048) -> StageModel:
        """Load the whole model into this process."""
        return StageModel.load(stage_of(self.manifest, self.folder / "shards", context=context))
