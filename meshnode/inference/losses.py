"""Why an attempt of a session ended before the session did."""

from meshnode.errors import SessionLost
from meshnode.types.evidence import Misdeed
from meshnode.types.ids import PeerId

__all__ = ["StageLost"]


class StageLost(SessionLost):
    """A stage has to be replaced: its peer is gone, frozen, or (`busy`) has no room for the session now.

    `accuser` is who says so, where that is another stage: one of the two is at fault. `misdeed` is what no honest peer does.
    """

    def __init__(
        self,
        peer: PeerId,
        reason: str,
        *,
        busy: bool = False,
        accuser: PeerId | None = None,
        misdeed: Misdeed | None = None,
    ) -> None:
        super().__init__(f"{peer}: {reason}")
        self.peer = peer
        self.busy = busy
        self.accuser = accuser
        self.misdeed = misdeed
