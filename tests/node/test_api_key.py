"""The key is made once, kept private, and may come from the service manager instead."""

import stat

import pytest

from meshnode.errors import ConfigError
from meshnode.node.api_key import load_api_key


def test_the_first_start_makes_a_private_key_and_the_second_keeps_it(tmp_path):
    path = tmp_path / "api_key"
    key = load_api_key(path, {})
    assert len(key) >= 40
    assert path.read_text() == key + "\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_api_key(path, {}) == key


def test_two_nodes_have_different_keys(tmp_path):
    assert load_api_key(tmp_path / "a", {}) != load_api_key(tmp_path / "b", {})


def test_a_credential_wins_and_nothing_is_written(tmp_path):
    (tmp_path / "credentials").mkdir()
    (tmp_path / "credentials" / "api_key").write_text("from-systemd\n")
    env = {"CREDENTIALS_DIRECTORY": str(tmp_path / "credentials")}
    assert load_api_key(tmp_path / "api_key", env) == "from-systemd"
    assert not (tmp_path / "api_key").exists()


def test_a_key_that_is_set_wins_over_everything_and_nothing_is_written(tmp_path):
    (tmp_path / "credentials").mkdir()
    (tmp_path / "credentials" / "api_key").write_text("from-systemd\n")
    env = {"CREDENTIALS_DIRECTORY": str(tmp_path / "credentials")}
    assert load_api_key(tmp_path / "api_key", env, chosen="a-set-key") == "a-set-key"
    assert not (tmp_path / "api_key").exists()


def test_credentials_without_a_key_fall_back_to_the_file(tmp_path):
    assert (
        load_api_key(tmp_path / "api_key", {"CREDENTIALS_DIRECTORY": str(tmp_path)})
        == (tmp_path / "api_key").read_text().strip()
    )


def test_a_key_that_others_could_read_is_made_private(tmp_path):
    path = tmp_path / "api_key"
    path.write_text("mine\n")
    path.chmod(0o644)
    assert load_api_key(path, {}) == "mine"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_an_empty_key_file_is_replaced(tmp_path):
    path = tmp_path / "api_key"
    path.write_text("\n")
    assert len(load_api_key(path, {})) >= 40


@pytest.mark.parametrize("content", [b"two keys\n", b"two\nlines\n", b"\xff\xfe", b"bell\x07"])
def test_a_file_that_holds_no_single_key_is_refused(tmp_path, content):
    path = tmp_path / "api_key"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="delete it"):
        load_api_key(path, {})


def test_a_key_file_that_cannot_be_read_is_refused_in_one_line(tmp_path):
    (tmp_path / "api_key").mkdir()
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_api_key(tmp_path / "api_key", {})


def test_a_key_file_that_cannot_be_made_is_refused_in_one_line(tmp_path):
    with pytest.raises(ConfigError, match="cannot be used: No such file"):
        load_api_key(tmp_path / "nowhere" / "api_key", {})


def test_a_dangling_link_is_replaced_and_not_written_through(tmp_path):
    (tmp_path / "api_key").symlink_to(tmp_path / "elsewhere")
    load_api_key(tmp_path / "api_key", {})
    assert not (tmp_path / "elsewhere").exists()
    assert not (tmp_path / "api_key").is_symlink()
