"""Why an attempt of a session ended before the session did."""

from meshnode.errors import SessionLost
from meshnode.types.ids import PeerId

__all__ = ["StageLost"]


class StageLost(SessionLost):
    """A stage has to be replaced: its peer is gone, frozen, or (`busy`) has no room for the session now."""

    def __init__(self, peer: PeerId, reason: str, *, busy: bool = False) -> None:
        super().__init__(f"{peer}: {reason}")
        self.peer = peer
        self.busy = busy
