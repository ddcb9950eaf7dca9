"""From a request to its tokens: admission, prompts, sessions, recovery, and the one finaliser of every answer.

Knows nothing of HTTP or of how weights are computed with. The InferenceRouter owns the sessions and the loaded models.
"""

__all__ = ["answer", "assets", "calls", "ports", "queue", "router", "session"]
