"""OpenAI's interface: chat completions and models.

Knows the wire format of that interface and nothing else of the outside world. Owns no state.
"""

__all__ = ["chat", "models", "schemas"]
