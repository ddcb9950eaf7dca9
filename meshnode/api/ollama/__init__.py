"""Ollama's interface: chat and generate as lines of JSON, and what its clients ask about models.

Knows the wire format of that interface and nothing else of the outside world. Owns no state.
"""

__all__ = ["models", "reply", "routes", "schemas"]
