"""Identifiers, each its own type so that they cannot be mixed up.

A `ModelId` is the BLAKE3 (64 hex digits) of a manifest's canonical bytes, a `ShardId` the BLAKE3 of a
shard file: names never identify weights. Session and request ids are random and live as long as what they name. A session
that several nodes run is named after its coordinator: they open it for nobody else, whoever knows its name.
"""

import secrets
from typing import NewType

__all__ = [
    "ModelId",
    "PeerId",
    "RequestId",
    "SessionId",
    "ShardId",
    "new_request_id",
    "new_session_id",
    "owner_of",
    "short",
]

PeerId = NewType("PeerId", str)
ModelId = NewType("ModelId", str)
ShardId = NewType("ShardId", str)
SessionId = NewType("SessionId", str)
RequestId = NewType("RequestId", str)


def new_request_id() -> RequestId:
    """Return a fresh request id, 24 hex digits (96 random bits)."""
    return RequestId(secrets.token_hex(12))


def new_session_id(owner: PeerId | None = None) -> SessionId:
    """Return a fresh session id: whose it is, if it leaves this node, and 24 hex digits (96 random bits)."""
    return SessionId(secrets.token_hex(12) if owner is None else f"{owner}/{secrets.token_hex(12)}")


def owner_of(session: SessionId) -> PeerId:
    """Return after whom a session is named."""
    return PeerId(session.rpartition("/")[0])


def short(identifier: str) -> str:
    """Return the first 12 characters, the form used in logs and tables."""
    return identifier[:12]
