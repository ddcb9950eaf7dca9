"""Who has read which beginnings lately: going over them again spares reading what their caches hold still.

It goes by text, since a node that hands a request on has no tokens of it. It is a guess: what memory was wanted for is gone, and
then it costs what it would have cost elsewhere.
"""

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

import attrs

from meshnode.types.generation import GenerationRequest
from meshnode.types.ids import ModelId, PeerId
from meshnode.types.routes import Route

__all__ = ["RecentRoutes", "beginnings_of"]

_PIECE = 512  # bytes; a page of 256 tokens has about two of them
_MOST_PIECES = 1024  # of one text that are named; behind them it is whoever has read these
_REMEMBERED = 8192  # pieces, about 150 bytes each


def beginnings_of(model: ModelId, request: GenerationRequest, asker: str = "") -> tuple[bytes, ...]:
    """Return a name for each beginning of the request's text, in steps of a piece, the shortest first.

    `asker` is the node that has handed the request on: only its own callers share what has been read. A text whose vector is
    wanted has none: all of it is read each time.
    """
    if request.embeds:
        return ()
    text = "\0".join(f"{message.role}\0{message.content}" for message in request.messages) + (request.prompt or "")
    raw = text.encode("utf-8", "surrogatepass") + array("Q", request.prompt_tokens).tobytes()
    digest = blake2b(f"{model}\0{asker}\0".encode(), digest_size=16)
    names = []
    for end in range(_PIECE, min(len(raw), _MOST_PIECES * _PIECE) + 1, _PIECE):
        digest.update(raw[end - _PIECE : end])
        names.append(digest.copy().digest())
    return tuple(names)


@attrs.frozen(eq=False)
class RecentRoutes:
    """The newest are remembered, as many as there is room for."""

    _peers: OrderedDict[bytes, frozenset[PeerId]] = attrs.field(factory=OrderedDict, init=False)

    def note(self, beginnings: Sequence[bytes], route: Route) -> None:
        """Remember who has read a text that begins so."""
        for name in reversed(beginnings):  # the shortest, which most texts begin with, is forgotten last
            self._peers[name] = route.peers
            self._peers.move_to_end(name)
        while len(self._peers) > _REMEMBERED:
            self._peers.popitem(last=False)

    def readers(self, beginnings: Sequence[bytes]) -> tuple[frozenset[PeerId], float]:
        """Return who has read most of a text, and how much of its pieces: 0 (nobody any) to 1."""
        for count in range(len(beginnings), 0, -1):
            if peers := self._peers.get(beginnings[count - 1]):
                return peers, count / len(beginnings)
        return frozenset(), 0.0
