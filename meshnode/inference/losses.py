"""Why an attempt of a session ended before the session did, and how the other side of what ends here hears of it."""

from collections.abc import Iterator
from contextlib import contextmanager

import trio

from meshnode.errors import SessionLost
from meshnode.network.stage_links import StageLink
from meshnode.types.evidence import Misdeed
from meshnode.types.ids import PeerId

__all__ = ["RingLost", "StageLost", "cause_of", "hangs_up"]


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


class RingLost(SessionLost):
    """Workers have lost each other and no stage has been lost: the same route goes on by way of the daemons."""


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


def cause_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return what matters of what came together: a cancellation or an error of ours first, a mere lack of room last."""
    losses, rest = group.split(StageLost)
    if rest is not None:
        leaves = list(_leaves(rest))
        return leaves[0] if len(leaves) == 1 and isinstance(leaves[0], Exception) else rest
    assert losses is not None
    found = [each for each in _leaves(losses) if isinstance(each, StageLost)]
    return next((loss for loss in found if not loss.busy), found[0])


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
