"""One data folder, one node; everything that can be wrong with the folder is one line."""

import errno
import fcntl
import json
import os
import stat

import pytest

from meshnode.errors import ConfigError
from meshnode.node.data_folder import announce, hold_data_folder


def _mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_folder_is_private(tmp_path):
    with hold_data_folder(tmp_path / "a" / "b") as paths:
        assert paths.root == tmp_path / "a" / "b"
        assert _mode(paths.root) == 0o700


def test_two_nodes_never_share_a_folder(tmp_path):
    second = hold_data_folder(tmp_path)
    refused = pytest.raises(ConfigError, match=rf"in use by another node \(pid {os.getpid()}\)")
    with hold_data_folder(tmp_path) as paths, announce(paths, "127.0.0.1", 1), refused:
        second.__enter__()
    with hold_data_folder(tmp_path):
        pass


def test_a_folder_held_by_a_node_without_runtime_file_is_refused_too(tmp_path):
    with hold_data_folder(tmp_path) as paths:
        paths.runtime_file.write_text("torn")
        with pytest.raises(ConfigError, match=r"in use by another node$"):
            hold_data_folder(tmp_path).__enter__()


def test_a_folder_that_is_a_file_is_refused_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot be used: (File exists|Not a directory)") as caught:
        hold_data_folder(tmp_path / "file").__enter__()
    assert "\n" not in str(caught.value)


def test_a_folder_that_cannot_be_made_is_refused_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be used: Not a directory"):
        hold_data_folder(tmp_path / "file" / "inside").__enter__()


@pytest.mark.parametrize(
    ("host", "reachable"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("box", "box")]
)
def test_the_runtime_file_says_where_the_node_is_and_goes_with_it(tmp_path, host, reachable):
    with hold_data_folder(tmp_path) as paths:
        with announce(paths, host, 8800):
            assert json.loads(paths.runtime_file.read_text()) == {"host": reachable, "port": 8800, "pid": os.getpid()}
        assert not paths.runtime_file.exists()


def test_a_runtime_file_that_cannot_be_written_is_refused_in_one_line(tmp_path):
    with hold_data_folder(tmp_path) as paths:
        paths.runtime_file.mkdir()
        with pytest.raises(ConfigError, match="cannot be used"):
            announce(paths, "127.0.0.1", 1).__enter__()


def test_a_runtime_file_that_is_already_gone_is_no_trouble(tmp_path):
    with hold_data_folder(tmp_path) as paths, announce(paths, "127.0.0.1", 1):
        paths.runtime_file.unlink()


def test_a_folder_that_cannot_be_locked_is_refused_in_one_line(tmp_path, monkeypatch):
    def refuse(*_args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(ConfigError, match="cannot be locked: No locks available"):
        hold_data_folder(tmp_path).__enter__()
