"""The admin API: the node's state, its models and its end, for the command line and the dashboard.

Knows nothing of how models are acquired or stopped; it asks. Owns no state.
"""

__all__ = ["models", "node", "updates"]
