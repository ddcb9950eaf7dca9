"""Tells from a chat template how its model writes calls."""

from meshnode.text.tool_calls.base import ToolFormat
from meshnode.text.tool_calls.deepseek import DEEPSEEK, DEEPSEEK_PLAIN
from meshnode.text.tool_calls.hermes import HERMES
from meshnode.text.tool_calls.llama import LLAMA
from meshnode.text.tool_calls.mistral import MISTRAL, MISTRAL_NAMED

__all__ = ["tool_format"]

_DEEPSEEK_CALL = "<\uff5ctool\u2581call\u2581begin\uff5c>"


def tool_format(template: str) -> ToolFormat | None:
    """Return the format a template's own texts show; None for one that says nothing of tools, or nothing that is known."""
    if _DEEPSEEK_CALL in template:
        return DEEPSEEK if "```json" in template else DEEPSEEK_PLAIN
    if "[TOOL_CALLS]" in template:
        return MISTRAL_NAMED if "[ARGS]" in template else MISTRAL
    if "<tool_call>" in template:
        return HERMES
    if "<|python_tag|>" in template or ('"parameters": ' in template and "ipython" in template):
        return LLAMA
    return None
