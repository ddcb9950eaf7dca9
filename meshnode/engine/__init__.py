"""Runs stages with torch: weights, KV caches, forward passes, sampling.

Knows nothing of peers, HTTP or text: activations or token ids go in, activations or token ids come out. Of the worker that rows
are handed on to, in a ring, it knows an address, a certificate and a token.
The weights and caches of a stage are owned by its `StageModel`, which lives in a worker process.
"""

__all__: list[str] = []
