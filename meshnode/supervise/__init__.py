"""Keeps subsystems running: ordered start, restarts within a budget, ordered stop, pulses, health conditions.

Knows nothing of what the subsystems do. The supervisor owns the state of its children; subsystems own theirs.
"""

__all__ = ["health", "stuck_loop", "subsystem", "supervisor", "watchdog"]
