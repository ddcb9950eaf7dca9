"""What Ollama's clients ask about models."""

from collections.abc import Iterable

from meshnode import __version__
from meshnode.api.ollama.reply import timestamp
from meshnode.api.ports import ServedModel

__all__ = ["VERSION", "list_models", "running_models", "show_model"]

VERSION = f"0.12.11-meshnode.{__version__}"
"""The version of Ollama whose interface this is, for clients that ask for a lowest one; and who really answers."""

_NEVER = "9999-12-31T23:59:59Z"


def list_models(models: Iterable[ServedModel]) -> dict[str, object]:
    """Return the document of /api/tags."""
    return {"models": [_entry(model) for model in models]}


def running_models(models: Iterable[ServedModel]) -> dict[str, object]:
    """Return the document of /api/ps: what the models hold of this machine's memory, and how much of that is on a GPU.

    Clients tell from the two where a model runs; of one that runs on peers alone both are 0. No model leaves by the clock.
    """
    return {"models": [_entry(model) | _running(model) for model in models if model.loaded]}


def show_model(model: ServedModel) -> dict[str, object]:
    """Return the document of /api/show."""
    kind = model.architecture or "unknown"
    facts: dict[str, object] = {
        "general.architecture": kind,
        "general.basename": model.name,
        f"{kind}.context_length": model.context_length,
    }
    if model.parameters:
        facts["general.parameter_count"] = model.parameters
    return {
        "modified_at": timestamp(model.created),
        "details": _details(model),
        "model_info": facts,
        "capabilities": ["completion", "tools", *(["thinking"] if model.thinks else [])]
        if model.causal
        else ["embedding"],
    }


def _entry(model: ServedModel) -> dict[str, object]:
    name = _tagged(model.name)
    return {
        "name": name,
        "model": name,
        "modified_at": timestamp(model.created),
        "size": model.nbytes,
        "digest": model.id,
        "details": _details(model),
    }


def _running(model: ServedModel) -> dict[str, object]:
    return {
        "size": model.memory_bytes,
        "size_vram": model.gpu_bytes,
        "expires_at": _NEVER,
        "context_length": model.context_length,
    }


def _details(model: ServedModel) -> dict[str, object]:
    return {
        "parent_model": "",
        "format": "gguf",
        "family": model.architecture,
        "families": [model.architecture] if model.architecture else [],
        "parameter_size": _rounded(model.parameters),
        "quantization_level": model.quantization,
    }


def _tagged(name: str) -> str:
    """Return a name as Ollama's clients expect it, with a tag."""
    return name if ":" in name else f"{name}:latest"


def _rounded(parameters: int) -> str:
    if parameters >= 10**9:
        return f"{parameters / 1e9:.1f}B"
    return f"{parameters / 1e6:.2f}M" if parameters else ""
