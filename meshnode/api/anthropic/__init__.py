"""Anthropic's interface: messages, their stream, and the counting of their tokens."""

__all__: list[str] = []
