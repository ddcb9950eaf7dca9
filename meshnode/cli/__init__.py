"""The command line: starts a node, or talks to a running one over its HTTP API.

Knows nothing of how a node works inside; only `run` and the offline model commands reach `meshnode.node`, and only
when they are called. Owns no state.
"""

__all__ = ["main"]
