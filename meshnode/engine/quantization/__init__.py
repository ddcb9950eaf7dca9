"""GGML's number formats: from the bytes of a file to tensors that torch's packed kernels multiply.

Knows nothing of layers or models. Owns no state.
"""

__all__: list[str] = []
