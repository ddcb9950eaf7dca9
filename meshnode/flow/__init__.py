"""How tasks talk: mailboxes, broadcasts, newest values, lanes for blocking work, budgets of time.

Knows nothing of the domain. Each object's state is owned by whoever built it; nothing here is global.
"""

__all__ = ["broadcast", "buckets", "deadlines", "lanes", "latest", "mailbox", "periodic"]
