import errno
from pathlib import Path

import pytest

from meshnode.store.failures import explain


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (RuntimeError("IO error: lock {}/LOCK: already held by process"), "in use by another process"),
        (RuntimeError("IO error: lock {}/LOCK: Resource temporarily unavailable"), "in use by another process"),
        (RuntimeError("database is locked"), "in use by another process"),
        (PermissionError(errno.EACCES, "Permission denied"), "cannot be written"),
        (RuntimeError("attempt to write a readonly database"), "cannot be written"),
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (OSError(errno.EDQUOT, "Quota"), "the disk is full"),
        (RuntimeError("Corruption: checksum mismatch"), "is damaged"),
        (RuntimeError("file is not a database"), "is damaged"),
        (RuntimeError("Database is closed"), "is closed"),
        (RuntimeError("something new"), "failed: something new"),
    ],
)
def test_each_cause_has_its_sentence_whatever_the_folder_is_called(error, sentence):
    path = Path("/closed/corrupt read-only/disk is full/database is locked")
    error.args = tuple(arg.format(path) if isinstance(arg, str) else arg for arg in error.args)
    said = str(explain(error, path))
    assert str(path) in said
    assert sentence in said.replace(str(path), "")


def test_the_words_of_a_back_end_are_told_as_words(tmp_path):
    said = str(explain(RuntimeError(b"IO error: /x/LOG: No space left on device"), tmp_path))
    assert "b'" not in said
    assert "cannot grow" in said
