"""How models write tool calls: one file per format, and a scanner that finds calls in text as it comes."""

from meshnode.text.tool_calls.base import CallText, NotACall, ToolFormat
from meshnode.text.tool_calls.detection import tool_format
from meshnode.text.tool_calls.scanner import ToolScanner

__all__ = ["CallText", "NotACall", "ToolFormat", "ToolScanner", "tool_format"]
