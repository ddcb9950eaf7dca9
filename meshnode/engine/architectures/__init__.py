"""One file per architecture family: which tensors make a block, and how a block is computed.

Knows nothing of sessions beyond the cache it is handed. Owns no state.
"""

__all__: list[str] = []
