"""What the API needs from the rest of the node, as plain values and callables."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import attrs
from quart_trio import QuartTrio

from meshnode.api.responses.archive import ResponseArchive
from meshnode.observe.metrics import Metrics
from meshnode.types.generation import GenerationEvent, GenerationRequest
from meshnode.types.parts import Added

__all__ = [
    "ApiDependencies",
    "Events",
    "Generate",
    "MeshAdmin",
    "ModelAdmin",
    "ModelList",
    "Pages",
    "ServedModel",
    "UpdateAdmin",
]


class Events(Protocol):
    """The events of one or more generations, each with the index of its request."""

    def __aiter__(self) -> AsyncIterator[tuple[int, GenerationEvent]]:
        """Iterate until every generation has finished."""
        ...

    async def __anext__(self) -> tuple[int, GenerationEvent]:
        """Return the next event. Raises the MeshnodeError that ended a generation. Cancellation loses no event."""
        ...

    def waiting(self) -> list[tuple[int, GenerationEvent]]:
        """Return what has arrived and not been iterated yet, without waiting."""
        ...


Generate = Callable[[Sequence[GenerationRequest]], AbstractAsyncContextManager[Events]]
"""Run generations side by side: Started, Delta*, Finished for each. Leaving the context cancels what still runs; it holds
no cancel scope while it is entered, since a streamed reply leaves it after the handler has returned."""


@attrs.frozen
class ServedModel:
    """One model as the API lists it."""

    name: str
    id: str  # of its manifest
    loaded: bool
    context_length: int  # tokens
    created: int  # Unix seconds
    quantization: str
    aliases: tuple[str, ...] = ()
    detail: str = ""  # why it is not loaded
    nbytes: int = 0  # of its shards; 0, and the like below: not known here
    architecture: str = ""
    parameters: int = 0
    thinks: bool = False  # its template lets it reason first; known of a model that is loaded here
    shards: int = 0  # of the whole model
    shards_held: int = 0  # of them here, verified
    copies: int = 0  # nodes, this one and peers, that have its rarest part on disk
    causal: bool = True  # False: it makes vectors and no text
    routes: int = 0  # complete routes that share no node
    memory_bytes: int = 0  # that it holds here: weights and caches
    gpu_bytes: int = 0  # of them on a GPU


ModelList = Callable[[], tuple[ServedModel, ...]]


class ModelAdmin(Protocol):
    """Adds and removes models."""

    async def add(self, reference: str, blocks: str | None, *, spread: bool = False) -> Added:
        """Acquire a model. Raises FileError and RequestError leafs; cancellation stops it."""
        ...

    async def remove(self, name: str, *, force: bool = False) -> None:
        """Remove a model and the shards no other model uses. Raises UnknownModel, and LastCopy unless by `force`."""
        ...

    async def export(self, name: str, folder: str) -> str:
        """Write what is here of a model into a folder and return its name. Raises FileError leafs and RequestError."""
        ...


Pages = Callable[[QuartTrio], frozenset[str]]
"""Adds routes that are not the API's own, and returns the paths of those that need no key."""


def _no_pages(_app: QuartTrio) -> frozenset[str]:
    return frozenset()


class MeshAdmin(Protocol):
    """The mesh as this node sees it."""

    def peers(self) -> list[dict[str, object]]:
        """Return all peers, JSON values."""
        ...

    def invitation(self) -> str:
        """Return a code that leads to this node. Raises RequestError."""
        ...

    async def join(self, addresses: tuple[str, ...]) -> str:
        """Connect to a node and return its peer id. Raises RequestError and PeerError leafs."""
        ...


class UpdateAdmin(Protocol):
    """New versions of the node itself."""

    def status(self) -> dict[str, object]:
        """Return what runs, what there is, and what came of it, JSON values."""
        ...

    async def check(self) -> dict[str, object]:
        """Look now and return the status. Raises UpdateError leafs; cancellation leaves the look to its end."""
        ...

    async def apply(self) -> dict[str, object]:
        """Install what is newer, return the status, and restart the node. Raises UpdateError leafs, before anything changes."""
        ...


@attrs.frozen(eq=False)
class ApiDependencies:
    """Everything `create_app` is made from."""

    key: str = attrs.field(repr=False)
    generate: Generate
    models: ModelList
    admin: ModelAdmin
    mesh: MeshAdmin
    wishes: Callable[[], Mapping[str, object]]  # what each model lacks, and how old that is, JSON values
    status: Callable[[], dict[str, object]]  # for /api/admin/status, JSON values
    unready: Callable[[], tuple[str, ...]]  # names of subsystems and models that are not ready
    request_shutdown: Callable[[], None]
    metrics: Metrics
    responses: ResponseArchive
    pages: Pages = _no_pages
    updates: UpdateAdmin | None = None  # None: a server without its routes
    requests_per_minute: int = 6000
    body_limit_bytes: int = 8 << 20
    body_timeout: float = 20.0  # seconds for a request's body to arrive
    heartbeat: float = 15.0  # seconds a stream may be silent; proxies cut at 30 to 60
    host: str = "127.0.0.1"
