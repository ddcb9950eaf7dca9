"""The API under test."""

from support.api import serve

__all__ = ["serve"]
