"""The HTTP surface: OpenAI's and Ollama's interfaces, MCP, the admin API, health and metrics.

Knows nothing of engines or files: it turns requests into generations and events into replies. Owns no state but connections.
"""

__all__ = ["application", "server", "serving"]
