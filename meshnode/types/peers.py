"""What a node tells others about itself: which stages it can run, how fast, and where it is reached."""

import enum
import math

import attrs

from meshnode.types.blocks import BlockRange
from meshnode.types.ids import ModelId, PeerId

__all__ = ["Holding", "Liveness", "Offer", "Offering", "PeerInfo", "Room", "StageOffer"]

_MAX_REPOSITORY = 200  # characters; a hub allows 96 for either half
_MAX_BLOCKS = 4096  # of one model; others' word for it must not decide how much we compute


@attrs.frozen
class StageOffer:
    """Blocks of one model that a node has loaded; any sub-range of `blocks` can be asked for."""

    model: ModelId  # hash of the manifest: the only thing that identifies weights
    name: str  # what people call it; two models may share a name
    block_count: int  # of the whole model
    hidden_size: int  # elements of one row of activations
    context_length: int  # tokens
    blocks: BlockRange
    embedding: bool  # can turn tokens into activations, if the stage begins at block 0
    head: bool  # can turn activations into tokens, if the stage ends at the last block
    drift_class: str  # kernels, dtypes and device kind: equal classes give equal bits
    block_seconds: float  # one decode row through one block
    prefill_seconds: float  # one row of a long prompt through one block
    free_tokens: int  # positions of KV cache that no session has reserved
    aliases: tuple[str, ...] = ()  # other names that people use for it
    causal: bool = True  # False: it makes vectors and no text

    def __attrs_post_init__(self) -> None:
        counts = (self.hidden_size, self.context_length, self.free_tokens)
        if not self.blocks.end <= self.block_count <= _MAX_BLOCKS or min(counts) < 0:
            raise ValueError(f"blocks {self.blocks} of a model of {self.block_count}, with {counts}")
        if not all(0 <= seconds < math.inf for seconds in (self.block_seconds, self.prefill_seconds)):
            raise ValueError(f"blocks that take {self.block_seconds} and {self.prefill_seconds} s")


@attrs.frozen
class Holding:
    """What a node has of one model on disk, verified, whether loaded or not; others may fetch it."""

    model: ModelId
    name: str
    block_count: int  # of the whole model
    blocks: tuple[BlockRange, ...] = ()  # ascending, apart from each other
    embedding: bool = False
    head: bool = False
    nbytes: int = 0  # of it
    aliases: tuple[str, ...] = ()
    repository: str = ""  # OWNER/REPO of a hub that it came from, if from one

    def __attrs_post_init__(self) -> None:
        if len(self.repository) > _MAX_REPOSITORY:
            raise ValueError(f"a repository whose name has {len(self.repository)} characters")
        if not 0 <= self.block_count <= _MAX_BLOCKS or any(each.end > self.block_count for each in self.blocks):
            raise ValueError(f"blocks {', '.join(map(str, self.blocks))} of a model of {self.block_count}")

    @property
    def is_whole(self) -> bool:
        """Whether nothing of the model lacks."""
        return self.embedding and self.head and self.blocks == (BlockRange(0, self.block_count),)

    def has(self, block: int) -> bool:
        """Whether a block is held."""
        return any(block in each for each in self.blocks)


@attrs.frozen
class Offering:
    """The stages of this node, and how many sessions they serve."""

    stages: tuple[StageOffer, ...] = ()
    sessions: int = 0


@attrs.frozen
class Room:
    """What a node says so that shards find their way: how much it holds for others, and what it is asked for."""

    budget: int = 0  # bytes of shards that it holds at most: what a person asked for here, and the room it gives
    uptime: float = 0.0  # seconds
    fetching: tuple[tuple[ModelId, BlockRange], ...] = ()
    demand: tuple[tuple[ModelId, float], ...] = ()  # requests per hour of its own callers
    pinned: tuple[ModelId, ...] = ()  # models that a person asked for here
    coming: int = 0  # bytes of what it is fetching, which have their place in the budget

    def __attrs_post_init__(self) -> None:
        rates = [rate for _, rate in self.demand]
        if min(self.budget, self.coming) < 0 or not all(0 <= number < math.inf for number in (self.uptime, *rates)):
            raise ValueError(f"a budget of {self.budget} bytes, up for {self.uptime} s, rates {rates[:5]}")


@attrs.frozen
class Offer:
    """The newest word of one node about itself. A higher sequence replaces a lower one."""

    peer: PeerId
    sequence: int  # milliseconds of the node's clock at its start, plus the number of offers since
    issued: float  # Unix seconds
    version: str
    addresses: tuple[str, ...]  # multiaddrs with /p2p/, best first
    stages: tuple[StageOffer, ...] = ()
    sessions: int = 0  # being served
    node: str = ""  # host name, for people
    holdings: tuple[Holding, ...] = ()
    room: Room | None = None  # None: it takes no part in placement

    def __attrs_post_init__(self) -> None:
        if self.sessions < 0:
            raise ValueError(f"{self.sessions} sessions")

    @property
    def room_bytes(self) -> int:
        """How much more it takes of models that nobody there has asked for."""
        held = sum(each.nbytes for each in self.holdings)
        return 0 if self.room is None else max(0, self.room.budget - self.room.coming - held)


class Liveness(enum.Enum):
    """What the failure detector says of a peer."""

    ALIVE = "alive"
    SUSPECT = "suspect"  # has missed a heartbeat, or is known by hearsay alone
    DEAD = "dead"


@attrs.frozen
class PeerInfo:
    """What is known of one peer at this moment."""

    peer: PeerId
    liveness: Liveness
    connected: bool  # over a control link of our own
    relayed: bool = False  # that link goes through a third node
    lan: bool = False  # reached at a private address, directly
    pool: bool = False  # belongs to a pool of ours
    round_trip: float | None = None  # seconds, None: not measured
    offer: Offer | None = None
    addresses: tuple[str, ...] = ()  # multiaddrs that have worked, newest first
    failures: int = 0  # things no honest peer does, since it was first seen
    links: int = 0  # control links to it so far
