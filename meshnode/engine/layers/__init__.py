"""The sublayers a transformer block is made of, every one of them row-invariant.

Row invariance is the engine's law: the result of a row does not depend, to the bit, on which or how many other rows
went through the kernel with it. It is what makes prefill, decode, batching, splitting and replay agree exactly.
Knows nothing of files or sessions. Owns no state.
"""

__all__: list[str] = []
