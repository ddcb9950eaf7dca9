"""Values that every package shares: frozen, comparable, without behaviour beyond their own arithmetic.

Knows nothing of any other package except `errors`. Owns no state.
"""

__all__ = ["blocks", "generation", "ids", "manifest", "tokenizer"]
