"""Why an attempt of a session ended before the session did, and how the other side of what ends here hears of it."""

from collections.abc import Iterator
from contextlib import contextmanager

import trio

from meshnode.errors import SessionLost
from meshnode.network.stage_links import StageLink
from meshnode.types.evidence import Misdeed
from meshnode.types.ids import PeerId

__all__ = ["StageLost", "hangs_up"]


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


@contextmanager
def hangs_up(link: StageLink) -> Iterator[None]:
    """Close the link when what is served over it is cancelled from outside, which is when this router ends.

    Links outlive routers, and the next one answers probes: without this, a peer would wait out its patience for a session
    that nobody knows of any more.
    """
    try:
        yield
    finally:
        if trio.current_effective_deadline() <= trio.current_time():
            link.close("the router of this node has ended, and with it what it was at")
