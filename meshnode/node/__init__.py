"""The composition root: opens what a node needs, builds its subsystems, connects them, runs and ends the process.

Knows everybody, and nobody may import it but the command line's `run`. It owns no state beyond one run: its local variables.
"""

__all__: list[str] = []
