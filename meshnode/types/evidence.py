"""What a peer did that no honest peer does."""

import enum

import attrs

from meshnode.types.ids import PeerId

__all__ = ["Evidence", "Misdeed"]


class Misdeed(enum.Enum):
    """Kinds of misbehaviour. `weight` is how much one says about the peer: a broken frame may be a bug, a forgery is none."""

    MALFORMED = ("malformed", 1)  # bytes that break the protocol
    FLOOD = ("flood", 1)  # more messages than anybody needs
    STALE = ("stale", 1)  # records that are too old, or of the future
    WRONG_ROWS = ("wrong_rows", 4)  # activations of the wrong shape, or not finite
    WRONG_BYTES = ("wrong_bytes", 10)  # of a shard or a manifest, which anybody can hash before sending
    FORGED = ("forged", 10)  # a signature or a sender that is not what it claims to be

    @property
    def label(self) -> str:
        """The name in metrics and logs."""
        return self.value[0]

    @property
    def weight(self) -> int:
        """How much one counts; at 20 a peer takes part in nothing."""
        return self.value[1]


@attrs.frozen
class Evidence:
    """One observation."""

    peer: PeerId
    misdeed: Misdeed
    detail: str
