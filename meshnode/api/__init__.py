"""The HTTP surface: OpenAI's interface, the admin API, health and metrics.

Knows nothing of engines or files: it turns requests into generations and events into replies. Owns no state but connections.
"""

__all__ = ["application", "server", "serving"]
