"""SentencePiece BPE as llama.cpp runs it: merge the neighbours with the best score until none is left.

The vocabulary's scores decide; of equal scores the leftmost pair goes first. What no token covers falls back to bytes.
"""

import heapq
from collections.abc import Sequence

import attrs

__all__ = ["SpmEncoder"]


@attrs.frozen(eq=False)
class SpmEncoder:
    """Encodes text whose spaces are already U+2581."""

    ids: dict[str, int]
    scores: Sequence[float]
    bytes_: dict[int, int]  # byte value -> token id
    unknown: int

    def encode(self, text: str) -> list[int]:
        """Return token ids; time O(n log n) in the characters."""
        pieces: list[str] = list(text)
        after = list(range(1, len(pieces) + 1))
        before = list(range(-1, len(pieces) - 1))
        queue: list[tuple[float, int, int, str]] = []

        def propose(left: int, right: int) -> None:
            if left >= 0 and right < len(pieces):
                merged = pieces[left] + pieces[right]
                token = self.ids.get(merged)
                if token is not None:
                    heapq.heappush(queue, (-self.scores[token], left, right, merged))

        for left in range(len(pieces) - 1):
            propose(left, left + 1)
        while queue:
            _, left, right, merged = heapq.heappop(queue)
            if not pieces[left] or after[left] != right or pieces[left] + pieces[right] != merged:
                continue  # one of the two has been merged away meanwhile
            pieces[left], pieces[right] = merged, ""
            after[left] = after[right]
            if after[right] < len(pieces):
                before[after[right]] = left
            propose(before[left], left)
            propose(left, after[left])
        return [token for piece in pieces if piece for token in self._tokens(piece)]

    def _tokens(self, piece: str) -> list[int]:
        if piece in self.ids:
            return [self.ids[piece]]
        return [self.bytes_.get(byte, self.unknown) for byte in piece.encode()]
