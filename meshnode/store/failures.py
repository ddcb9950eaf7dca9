"""The sentence a person reads when the database does not do what it should."""

import errno
from pathlib import Path

from meshnode.errors import StoreError

__all__ = ["explain"]

# Back ends report system errors as prose, so the prose is what there is to go by.
_SENTENCES = (
    (
        ("already held", "lock: resource temporarily unavailable", "database is locked", "lock "),
        "is in use by another process; stop the other node, or use another --data-dir",
    ),
    (
        ("permission denied", "read-only", "readonly", "unable to open database file"),
        "cannot be written; check the permissions of the folder and that its disk is not read-only",
    ),
    (
        ("no space left", "disk is full", "file too large", "disk i/o error", "disk quota"),
        "cannot grow: the disk is full or a size limit is reached; free some space and start again",
    ),
    (("corrupt", "malformed", "not a database"), "is damaged; restore it from a copy, or move it away to start empty"),
    (("closed",), "is closed"),
)
_FULL = frozenset({errno.ENOSPC, errno.EFBIG, errno.EDQUOT})


def _said(error: Exception) -> str:
    """Return an error's own words; LevelDB's are bytes."""
    words = error.args[0] if error.args else ""
    return words.decode(errors="replace") if isinstance(words, bytes) else str(error)


def explain(error: Exception, path: Path) -> StoreError:
    """Return a StoreError that names the folder, the cause and what to do about it."""
    said = _said(error)
    if isinstance(error, OSError) and error.errno in _FULL:
        said = "no space left: " + said
    lowered = said.replace(str(path), "").lower()  # a folder may be called anything, "closed" too
    for words, sentence in _SENTENCES:
        if any(word in lowered for word in words):
            return StoreError(f"the store in {path} {sentence} ({said})")
    return StoreError(f"the store in {path} failed: {said}")
