"""What the node says about itself: logs, metrics, and steps of the loop that took too long.

Knows nothing of what is observed. The metrics' registry is owned by the composition root; logging belongs to the process.
"""

__all__ = ["logging", "loop_stalls", "metrics"]
