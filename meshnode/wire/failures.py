"""Errors as they travel between processes and nodes: their code and their sentence.

On the other side they become the same class again. A code from another version, or one that only makes sense where it was
raised, becomes the `default` the reader chooses.
"""

import msgspec

from meshnode.errors import (
    BadRows,
    ContextOverflow,
    DeadlineExceeded,
    DeviceLost,
    EngineError,
    GrammarRefused,
    InvalidModelFile,
    MeshnodeError,
    NoRoute,
    OutOfMemory,
    Overloaded,
    PeerMisbehaved,
    PeerRefused,
    PeerUnreachable,
    RequestError,
    RingBroken,
    SessionLost,
    ShardCorrupt,
    Unavailable,
    UnknownModel,
    UnsupportedModel,
    WorkerLost,
)

__all__ = ["Failed", "error_from", "failure"]

_ERRORS: dict[str, type[MeshnodeError]] = {
    kind.code: kind
    for kind in (
        BadRows,
        ContextOverflow,
        DeadlineExceeded,
        DeviceLost,
        EngineError,
        GrammarRefused,
        InvalidModelFile,
        NoRoute,
        OutOfMemory,
        Overloaded,
        PeerMisbehaved,
        PeerRefused,
        PeerUnreachable,
        RequestError,
        RingBroken,
        SessionLost,
        ShardCorrupt,
        Unavailable,
        UnknownModel,
        UnsupportedModel,
        WorkerLost,
    )
}
_LONGEST = 2000  # characters of a sentence


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The exchange ended with this error."""

    code: str
    message: str


def failure(error: MeshnodeError) -> Failed:
    """Return the error as it travels."""
    return Failed(error.code, str(error)[:_LONGEST])


def error_from(failed: Failed, default: type[MeshnodeError] = EngineError) -> MeshnodeError:
    """Return the error that travelled as `failed`."""
    return _ERRORS.get(failed.code, default)(failed.message[:_LONGEST])
