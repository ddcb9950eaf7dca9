"""Tickets: how a browser that this node opens gets the key.

An address is an argument of the browser's process, which every user of the machine can read, and stays in its history; so it
carries a ticket that is good once and for a minute, and never the key.
"""

import secrets

import attrs
import trio

__all__ = ["Tickets"]

_LIFETIME = 60.0  # seconds; a browser that has to be started first takes a while
_MOST = 8  # open at once


@attrs.define(eq=False, repr=False)
class Tickets:
    """Opened with `issue`, spent with `redeem`."""

    _expiries: dict[str, float] = attrs.field(factory=dict, init=False)  # ticket -> trio.current_time()

    def issue(self) -> str:
        """Return a new ticket; the oldest one makes room if there are too many."""
        while len(self._expiries) >= _MOST:
            del self._expiries[next(iter(self._expiries))]
        ticket = secrets.token_urlsafe(32)
        self._expiries[ticket] = trio.current_time() + _LIFETIME
        return ticket

    def redeem(self, ticket: str) -> bool:
        """Whether the ticket was good; it is not any more."""
        return trio.current_time() <= self._expiries.pop(ticket, float("-inf"))
