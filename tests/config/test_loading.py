from pathlib import Path

import pytest

from meshnode.config import default_data_dir, load_config
from meshnode.config.loading import known_keys
from meshnode.errors import ConfigError


def write(tmp_path, text):
    file = tmp_path / "config.toml"
    file.write_text(text)
    return file


def test_each_source_overrides_the_one_before_and_is_named(tmp_path):
    file = write(tmp_path, "[api]\nport = 1\nhost = 'a'\nmax_connections = 5\n")
    loaded = load_config(flags={"api.port": 3}, env={"MESHNODE_PORT": "2", "MESHNODE_API_HOST": "b"}, file=file)
    assert (loaded.config.api.port, loaded.config.api.host, loaded.config.api.max_connections) == (3, "b", 5)
    assert str(loaded.origins["api.port"]) == "flag --port"
    assert str(loaded.origins["api.host"]) == "environment MESHNODE_API_HOST"
    assert str(loaded.origins["api.max_connections"]) == f"file {file}"
    assert str(loaded.origins["log.level"]) == "default"


def test_the_file_is_found_in_the_data_folder(tmp_path):
    write(tmp_path, "[log]\nlevel = 'debug'\n")
    assert load_config(flags={"node.data_dir": tmp_path}, env={}, file=None).config.log.level == "debug"


def test_a_none_flag_was_not_given(tmp_path):
    assert load_config(flags={"api.port": None}, env={}, file=tmp_path / "none").config.api.port == 8800


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[api]\nprot = 1", ["api.prot", "did you mean api.port"]),
        ("[apy]\nport = 1", ["apy", "did you mean api"]),
        ("[api]\nport = 70000", ["api.port", "65535", "config.toml"]),
        ("[api]\nport = true", ["api.port", "whole number"]),
        ("[models]\nblocks = '5:2'", ["models.blocks", "config.toml"]),
        ("[api", ["config.toml", "cannot be read"]),
    ],
)
def test_a_bad_file_is_refused_by_key_and_origin(tmp_path, text, words):
    with pytest.raises(ConfigError) as caught:
        load_config(flags={}, env={}, file=write(tmp_path, text))
    for word in words:
        assert word in str(caught.value)


def test_an_unknown_variable_is_refused_with_a_hint(tmp_path):
    with pytest.raises(ConfigError, match="did you mean MESHNODE_PORT"):
        load_config(flags={}, env={"MESHNODE_PROT": "1"}, file=tmp_path / "none")


def test_two_variables_for_one_setting_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="set twice"):
        load_config(flags={}, env={"MESHNODE_PORT": "1", "MESHNODE_API_PORT": "2"}, file=tmp_path / "none")


def test_variables_have_list_table_and_negated_forms(tmp_path):
    env = {"MESHNODE_MODEL": "a, b", "MESHNODE_MODELS_ALIASES": "x=y", "MESHNODE_NO_BROWSER": "1"}
    config = load_config(flags={}, env=env, file=tmp_path / "none").config
    assert config.models.names == ("a", "b")
    assert config.models.aliases == {"x": "y"}
    assert config.api.open_browser is False


def test_every_setting_has_a_variable_of_its_own(tmp_path):
    written = {bool: "true", int: "1", float: "1", str: "cpu", Path: "/x", tuple[str, ...]: "a", dict[str, str]: "a=b"}
    special = {"models.blocks": "0:1", "log.level": "info", "log.format": "json", "api.body_limit_bytes": "2048"}
    special |= {"api.key": "a-long-key", "inference.privacy": "anyone", "updates.url": "https://x/y"}
    special |= {"updates.keys": "A" * 43 + "=", "updates.threshold": "2", "updates.interval": "60"}
    special |= {"updates.ready_timeout": "5"}
    for key, wanted in known_keys().items():
        plain = wanted if wanted in written else next(kind for kind in written if wanted == kind | None)
        variable = "MESHNODE_" + key.replace(".", "_").upper()
        loaded = load_config(flags={}, env={variable: special.get(key, written[plain])}, file=tmp_path / "none")
        assert str(loaded.origins[key]) == f"environment {variable}"


def test_the_file_in_the_default_folder_can_move_the_data_elsewhere(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    default_data_dir().mkdir()
    (default_data_dir() / "config.toml").write_text("[node]\ndata_dir = '/big'\n")
    loaded = load_config(flags={}, env={}, file=None)
    assert loaded.config.node.data_dir == Path("/big")
    assert loaded.file == default_data_dir() / "config.toml"


def test_a_variable_of_another_part_is_left_alone(tmp_path):
    load_config(flags={}, env={"MESHNODE_STARTER_WHEEL": "x", "HOME": "y"}, file=tmp_path / "none")


@pytest.mark.parametrize(("key", "flag"), [("api.port", "--port"), ("chat.max_tokens", "--max-tokens")])
def test_an_error_names_the_flag(tmp_path, key, flag):
    with pytest.raises(ConfigError, match=f"{key}: .*\\(from flag {flag}\\)"):
        load_config(flags={key: "x"}, env={}, file=tmp_path / "none")
