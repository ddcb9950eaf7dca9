"""Which sessions coordinators have closed here: a wish that was overtaken on its way opens none of them again."""

from collections import OrderedDict

import attrs

from meshnode.types.ids import PeerId, SessionId

__all__ = ["ClosedSessions"]


@attrs.define(eq=False)
class ClosedSessions:
    """The last ones of each coordinator, so that nobody has what others have closed forgotten.

    A wish that was overtaken comes within seconds, some hundred sessions later.
    """

    sessions: int = 256  # of one coordinator
    coordinators: int = 256  # who has closed nothing for longest is forgotten first
    # Below which attempt each is closed; the newest comes last.
    _closed: OrderedDict[PeerId, OrderedDict[SessionId, int]] = attrs.field(factory=OrderedDict, init=False)

    def close(self, coordinator: PeerId, session: SessionId, below: int) -> None:
        """Close a session's attempts below `below`."""
        theirs = self._closed.setdefault(coordinator, OrderedDict())
        self._closed.move_to_end(coordinator)
        theirs[session] = max(below, theirs.pop(session, below))
        for remembered, bound in ((theirs, self.sessions), (self._closed, self.coordinators)):
            if len(remembered) > bound:
                remembered.popitem(last=False)

    def has(self, coordinator: PeerId, session: SessionId, attempt: int) -> bool:
        """Whether an attempt has been closed."""
        theirs = self._closed.get(coordinator)
        return theirs is not None and attempt < theirs.get(session, attempt)
