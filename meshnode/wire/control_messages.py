"""What nodes say to each other about the mesh, over the control link of each pair; the first four on every link.

`Hello` is the first message in both directions. Everything that has a time in it has a length of time, not a moment:
clocks of different machines may be hours apart.
"""

from typing import Annotated

import msgspec

from meshnode.types.ids import ModelId, PeerId
from meshnode.wire.failures import Failed

__all__ = [
    "ControlMessage",
    "Hello",
    "Introduction",
    "Introductions",
    "IntroductionsWanted",
    "Kept",
    "KeptWanted",
    "LinkMessage",
    "Ping",
    "Pong",
    "Records",
    "SignedRecord",
    "Ticket",
    "TicketRequest",
]

Digest = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Address = Annotated[str, msgspec.Meta(max_length=512)]
Name = Annotated[PeerId, msgspec.Meta(max_length=128)]


# On every link


class Hello(msgspec.Struct, frozen=True, tag="hello", omit_defaults=True):
    """Who speaks, how, and in which network. The first message of both sides."""

    oldest: int  # protocol version it speaks, and
    newest: int  # everything between
    features: int  # bits of versions.Feature
    network: Digest  # shows that the sender knows the id of its network, without saying it; see versions.network_proof
    version: Annotated[str, msgspec.Meta(max_length=64)]  # of the program, for people
    clock: float  # Unix seconds, to tell people that a clock is wrong
    for_route: bool = False  # a session is to run over it: it may have a place where there is none for others


class Ping(msgspec.Struct, frozen=True, tag="ping", gc=False, omit_defaults=True):
    """Ask for a sign of life."""

    number: int
    digest: int | None = None  # of the sender's book of records, on control links


class Pong(msgspec.Struct, frozen=True, tag="pong", gc=False, omit_defaults=True):
    """The answer to the ping of that number."""

    number: int
    digest: int | None = None  # as in Ping


# On control links


class SignedRecord(msgspec.Struct, frozen=True, tag="record", gc=False):
    """What one node says of itself. Only the signature of `signer` makes it true, whoever hands it on."""

    signer: Name
    payload: bytes
    signature: Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]


class Records(msgspec.Struct, frozen=True, tag="records"):
    """Records of any nodes, most useful first."""

    records: Annotated[tuple[SignedRecord, ...], msgspec.Meta(max_length=256)]  # of 256 bytes at least, in 56 KiB


class IntroductionsWanted(msgspec.Struct, frozen=True, tag="introductions_wanted"):
    """Ask for peers that the other side is connected to. Answered with Introductions."""

    count: int


class Introduction(msgspec.Struct, frozen=True):
    """A peer and where it has been reached."""

    peer: Name
    addresses: Annotated[tuple[Address, ...], msgspec.Meta(max_length=8)]


class Introductions(msgspec.Struct, frozen=True, tag="introductions"):
    """Some peers: hints, to be believed when they answer."""

    peers: Annotated[tuple[Introduction, ...], msgspec.Meta(max_length=64)]


class TicketRequest(msgspec.Struct, frozen=True, tag="ticket_request"):
    """Ask for leave to open a stage link. Answered with a Ticket or Failed."""

    purpose: Annotated[str, msgspec.Meta(max_length=32)]  # dataplane.Purpose


class Ticket(msgspec.Struct, frozen=True, tag="ticket"):
    """Leave to open one stage link, for whom it was given to, once."""

    hosts: Annotated[tuple[Annotated[str, msgspec.Meta(max_length=255)], ...], msgspec.Meta(max_length=8)]  # best first
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)]
    certificate: Digest  # SHA-256 of what the listener must present
    token: Digest
    lifetime: Annotated[float, msgspec.Meta(gt=0)]  # seconds from now


class KeptWanted(msgspec.Struct, frozen=True, tag="kept_wanted"):
    """Ask whether blocks of a model, and an end with the block at it, are held and not about to go.

    Answered with Kept or Failed.
    """

    model: Annotated[ModelId, msgspec.Meta(min_length=64, max_length=64)]
    start: Annotated[int, msgspec.Meta(ge=0)]
    end: Annotated[int, msgspec.Meta(ge=1, le=4096)]  # exclusive


class Kept(msgspec.Struct, frozen=True, tag="kept"):
    """Whether they are, at this moment."""

    all: bool


LinkMessage = Hello | Ping | Pong | Failed
ControlMessage = (
    Hello
    | Ping
    | Pong
    | SignedRecord
    | Records
    | IntroductionsWanted
    | Introductions
    | TicketRequest
    | Ticket
    | KeptWanted
    | Kept
    | Failed
)
