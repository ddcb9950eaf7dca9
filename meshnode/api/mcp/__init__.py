"""The Model Context Protocol at /mcp: this node's models as tools for other programs' agents.

Its SDK is an extra (`pip install 'meshnode[mcp]'`) and takes most of a second to import, so only `serving` imports it, when the
first request comes.
"""

__all__: list[str] = []
