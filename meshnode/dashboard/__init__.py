"""The page for people: what the node is doing, how programs reach it, and a box to chat in.

Knows nothing of the node but its HTTP API, which the page's script calls from the browser. Owns the tickets that let a browser
in which the node itself opens.
"""

__all__ = ["routes", "tickets"]
