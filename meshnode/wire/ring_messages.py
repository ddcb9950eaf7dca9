"""What workers of neighbouring stages say to each other, so that a token goes round without their daemons.

A ring link leads one way: from the worker that dials to the one whose door it is. It carries any number of sessions, each under a
number that the dialler chooses. `Attach` shows the token that the coordinator of the session passed on, and is answered by
`Attached`; from then on each step of a session is one `Lap`.
"""

import msgspec

from meshnode.types.generation import TokenEvent
from meshnode.wire.envelopes import FrameType, MessageSet

__all__ = ["RING_MESSAGES", "TOKEN_BYTES", "Attach", "Attached", "Detach", "Lap", "RingDoor", "RingMessage"]

TOKEN_BYTES = 32


class RingDoor(msgspec.Struct, frozen=True):
    """Where the worker of one stage takes in the worker of the stage before it, for one session."""

    hosts: tuple[str, ...]  # IP addresses, best first
    port: int
    certificate: bytes  # SHA-256 of what it will present
    token: bytes  # good once


class Attach(msgspec.Struct, frozen=True, tag="attach"):
    """Take in a session; the first message on every link, within seconds."""

    number: int  # not in use on this link
    token: bytes


class Attached(msgspec.Struct, frozen=True, tag="attached"):
    """The session is known here. A token that is not expected is not answered, and as the first on a link it ends the link."""

    number: int


class Detach(msgspec.Struct, frozen=True, tag="detach"):
    """No lap of this session will come any more, and that is as it should be."""

    number: int


class Lap(msgspec.Struct, frozen=True, tag="lap", omit_defaults=True):
    """One row to compute and to hand on: the body is bfloat16 [hidden] (little-endian), or `event` names the token."""

    number: int
    step: int  # counts up within an attempt, across all laps
    position: int  # of the row
    event: TokenEvent | None = (
        None  # for the first stage: what the last one sampled, all of it if the first tells of it
    )


RingMessage = Attach | Attached | Detach | Lap

RING_MESSAGES: MessageSet[RingMessage] = MessageSet(
    {
        FrameType(10, 1 << 10): (Attach, Attached, Detach),
        FrameType(11, (64 << 10) + 256, has_body=True): (Lap,),  # a row of 32,768 bfloat16
    }
)
