"""Every exception meshnode raises on purpose, as one tree.

MeshnodeError
├── ConfigError              a setting is missing, unknown or out of range
├── StoreError               the database cannot be opened, read or written
├── WireError                bytes from another process or peer break the protocol
│   ├── FrameTooLarge
│   ├── UnknownMessage
│   └── VersionMismatch
├── PeerError                another node did not do what we asked
│   ├── PeerUnreachable
│   ├── PeerRefused
│   └── PeerMisbehaved
├── FileError                a model file
│   ├── ShardCorrupt         bytes that do not match their hash
│   ├── SourceUnavailable    the place it should come from does not answer
│   ├── UnsupportedModel     well-formed, but nothing here can run it
│   └── InvalidModelFile     not well-formed: truncated, wrong magic, wrong shape
├── EngineError              the machinery below a stage
│   ├── OutOfMemory
│   ├── DeviceLost
│   ├── WorkerLost           the worker process ended while it owed us an answer
│   └── RingBroken           workers of two stages have lost each other
├── InferenceError           a generation that could not be completed
│   ├── NoRoute
│   ├── SessionLost
│   ├── Overloaded
│   └── DeadlineExceeded
├── RequestError             the caller's input is wrong
│   ├── UnknownModel
│   ├── LastCopy             no other node has it; only by force
│   ├── ContextOverflow
│   ├── UnknownResponse
│   ├── GrammarRefused       the form that the answer must have cannot be enforced
│   └── BadRows              activations that no working stage makes
├── EconomyError
├── PoolError
├── UpdateError
│   ├── ReleaseRefused       not signed as it must be, expired, older than what was seen, or not these bytes
│   ├── UpdateUnavailable    the place it should come from does not answer
│   └── UpdateBlocked        good, but not for this machine as it is
├── Unavailable              a subsystem is down or draining; try again
└── Fatal                    ends the process with its exit code

`code` is stable and crosses process and network boundaries; prose does not. The mapping to HTTP
statuses exists once, in `meshnode.api.failures`.
"""

from typing import ClassVar

__all__ = [
    "BadRows",
    "ConfigError",
    "ContextOverflow",
    "DeadlineExceeded",
    "DeviceLost",
    "EconomyError",
    "EngineError",
    "Fatal",
    "FileError",
    "FrameTooLarge",
    "GrammarRefused",
    "InferenceError",
    "InvalidModelFile",
    "LastCopy",
    "MeshnodeError",
    "NoRoute",
    "OutOfMemory",
    "Overloaded",
    "PeerError",
    "PeerMisbehaved",
    "PeerRefused",
    "PeerUnreachable",
    "PoolError",
    "ReleaseRefused",
    "RequestError",
    "RingBroken",
    "SessionLost",
    "ShardCorrupt",
    "SourceUnavailable",
    "StoreError",
    "Unavailable",
    "UnknownMessage",
    "UnknownModel",
    "UnknownResponse",
    "UnsupportedModel",
    "UpdateBlocked",
    "UpdateError",
    "UpdateUnavailable",
    "VersionMismatch",
    "WireError",
    "WorkerLost",
]


class MeshnodeError(Exception):
    """Base of everything meshnode raises on purpose; `str()` says what was wrong and what to do."""

    code: ClassVar[str] = "internal"


class ConfigError(MeshnodeError):
    """A setting is missing, unknown or out of range; the message names it and where it came from."""

    code = "config"


class StoreError(MeshnodeError):
    """The database cannot be opened, read or written."""

    code = "store"


class WireError(MeshnodeError):
    """Bytes from another process or peer break the protocol."""

    code = "wire"


class FrameTooLarge(WireError):
    """A frame announces more bytes than its kind may have; nothing of it was read."""

    code = "frame_too_large"


class UnknownMessage(WireError):
    """A well-framed message of a kind this version does not know."""

    code = "unknown_message"


class VersionMismatch(WireError):
    """The other side speaks no version that we speak."""

    code = "version_mismatch"


class PeerError(MeshnodeError):
    """Another node did not do what we asked."""

    code = "peer"


class PeerUnreachable(PeerError):
    """No connection to the peer exists and none could be made."""

    code = "peer_unreachable"


class PeerRefused(PeerError):
    """The peer answered, and the answer was no."""

    code = "peer_refused"


class PeerMisbehaved(PeerError):
    """The peer sent something no honest peer sends."""

    code = "peer_misbehaved"


class FileError(MeshnodeError):
    """A model file cannot be used."""

    code = "file"


class ShardCorrupt(FileError):
    """The bytes of a shard do not match its hash; the file has been quarantined."""

    code = "shard_corrupt"


class SourceUnavailable(FileError):
    """The place a model should come from does not answer or does not have it."""

    code = "source_unavailable"


class UnsupportedModel(FileError):
    """A well-formed model that nothing here can run; the message names the feature."""

    code = "unsupported_model"


class InvalidModelFile(FileError):
    """A model file that is truncated, has the wrong magic, or contradicts itself."""

    code = "invalid_model_file"


class EngineError(MeshnodeError):
    """The machinery below a stage failed."""

    code = "engine"


class OutOfMemory(EngineError):
    """Weights or KV cache do not fit the memory budget."""

    code = "out_of_memory"


class DeviceLost(EngineError):
    """The accelerator reported an error from which its context does not recover."""

    code = "device_lost"


class WorkerLost(EngineError):
    """The worker process ended while it owed us an answer."""

    code = "worker_lost"


class RingBroken(EngineError):
    """Workers of two stages have lost each other; their daemons can still hand tokens on."""

    code = "ring_broken"


class InferenceError(MeshnodeError):
    """A generation that could not be completed."""

    code = "inference"


class NoRoute(InferenceError):
    """No set of reachable holders covers all blocks of the model."""

    code = "no_route"


class SessionLost(InferenceError):
    """A session's state is gone and could not be rebuilt."""

    code = "session_lost"


class Overloaded(InferenceError):
    """The queue is full; `retry_after` says when to come back."""

    code = "overloaded"

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after  # seconds


class DeadlineExceeded(InferenceError):
    """The request's deadline passed before it was done."""

    code = "deadline_exceeded"


class RequestError(MeshnodeError):
    """The caller's input is wrong; `param` names the field where one is to blame."""

    code = "invalid_request"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class UnknownModel(RequestError):
    """No model of that name is here; the message lists what there is."""

    code = "model_not_found"


class LastCopy(RequestError):
    """What is to be removed is on no other node of the mesh, as far as is known; the message says what, and how to insist."""

    code = "last_copy"


class ContextOverflow(RequestError):
    """The prompt alone is longer than the model's context; the message names both numbers."""

    code = "context_length_exceeded"


class UnknownResponse(RequestError):
    """No answer of that id is kept here."""

    code = "response_not_found"


class GrammarRefused(RequestError):
    """The form that the answer must have cannot be enforced; the message says why."""

    code = "grammar_refused"


class BadRows(RequestError):
    """Activations that no working stage makes: not finite, or not whole rows."""

    code = "bad_rows"


class EconomyError(MeshnodeError):
    """A receipt or balance breaks the ledger's rules."""

    code = "economy"


class PoolError(MeshnodeError):
    """An invitation or membership is not valid."""

    code = "pool"


class UpdateError(MeshnodeError):
    """A release could not be verified or applied."""

    code = "update"


class ReleaseRefused(UpdateError):
    """A release is not to be trusted: signatures, expiry, a downgrade, or other bytes than were signed."""

    code = "release_refused"


class UpdateUnavailable(UpdateError):
    """The place a release should come from does not answer, or not as it should; the next look may go better."""

    code = "update_unavailable"


class UpdateBlocked(UpdateError):
    """A good release that cannot be installed here as things are; the message says what a person can do."""

    code = "update_blocked"


class Unavailable(MeshnodeError):
    """The subsystem that should answer is down or draining; the same request may succeed later."""

    code = "unavailable"


class Fatal(MeshnodeError):
    """An error that ends the process, with the exit code the service manager should see."""

    code = "fatal"

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
