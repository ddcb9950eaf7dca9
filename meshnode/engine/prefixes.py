"""Names pages of KV cache by what is in them, so that texts that begin alike find each other's pages.

A page holds the keys and values of PAGE tokens, which depend on all tokens before them too: so its name is a digest of its
tokens and of the name before it. Names of different scopes never meet. A scope is whoever may notice that a page was there
already, for an answer that comes sooner tells something about what others have asked.
"""

from array import array
from collections.abc import Iterable, Sequence
from hashlib import blake2b

import attrs

__all__ = ["PAGE", "PageNames", "names_in"]

PAGE = 256
"""Positions per page. Attention reduces over whole pages, so this number is part of the drift class."""

_SIZE = 32  # bytes: nobody finds two texts with one name


@attrs.define(eq=False)
class PageNames:
    """The names of the pages of one text that grows."""

    scope: bytes
    _names: list[bytes] = attrs.field(factory=list, init=False)

    def of(self, tokens: Sequence[int], pages: int) -> Sequence[bytes]:
        """Return the names of the first `pages` pages of a text that begins as it did at earlier calls."""
        for page in range(len(self._names), pages):
            before = self._names[-1] if self._names else blake2b(self.scope, digest_size=_SIZE).digest()
            text = array("Q", tokens[page * PAGE : (page + 1) * PAGE]).tobytes()
            self._names.append(blake2b(before + text, digest_size=_SIZE).digest())
        return self._names[:pages]


def names_in(scope: bytes, names: Iterable[bytes]) -> tuple[bytes, ...]:
    """Return what names that somebody else made are called in a scope."""
    key = blake2b(scope, digest_size=_SIZE).digest()
    return tuple(blake2b(name, digest_size=_SIZE, key=key).digest() for name in names)
