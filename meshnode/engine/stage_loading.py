"""Loads a stage of whatever kind its model is."""

from collections.abc import Callable

from meshnode.engine.encoder_model import EncoderModel
from meshnode.engine.executor import StageSpec
from meshnode.engine.stage_model import StageModel

__all__ = ["LoadedStage", "load_stage"]

LoadedStage = StageModel | EncoderModel


def load_stage(spec: StageSpec, progress: Callable[[int, int], None] | None = None) -> LoadedStage:
    """Load a stage; `progress` hears (blocks done, blocks in all). Raises InvalidModelFile and UnsupportedModel."""
    kind: type[StageModel] | type[EncoderModel] = StageModel if spec.config.causal else EncoderModel
    return kind.load(spec, progress)
