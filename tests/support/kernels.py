"""Whether the engine uses its own kernels, whatever this processor would choose."""

import pytest

from meshnode.engine import avx2

OWN_RUN_HERE = avx2.kernels is not None and bool(avx2.kernels.SUPPORTED)

needs_own = pytest.mark.skipif(not OWN_RUN_HERE, reason="our own kernels need AVX2, and a compiler when installed")


def use_kernels(monkeypatch, which):
    """Use the "own" kernels, where they run at all, or those of "torch", until the test ends."""
    monkeypatch.setattr(avx2, "_ARE_PREFERRED", which == "own" and OWN_RUN_HERE)
