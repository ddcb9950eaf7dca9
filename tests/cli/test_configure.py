"""`config set` on a file that is wrong, and with values that are."""

import tomllib

import pytest


@pytest.fixture
def folder(tmp_path):
    def write(text):
        (tmp_path / "config.toml").write_text(text)
        return tmp_path

    return write


def test_a_broken_setting_is_repaired_by_setting_it(invoke, folder):
    path = folder('# mine\n[api]\nport = "x"\n')
    result = invoke("config", "set", "api.port", "9000", "--data-dir", str(path))
    assert result.exit_code == 0, result.output
    assert (path / "config.toml").read_text() == "# mine\n[api]\nport = 9000\n"
    assert invoke("config", "show", "--data-dir", str(path)).exit_code == 0


def test_what_is_still_wrong_is_told(invoke, folder):
    path = folder('[api]\nport = "x"\n[engine]\nthreads = "many"\n')
    result = invoke("config", "set", "api.port", "9000", "--data-dir", str(path))
    assert result.exit_code == 0
    assert "engine.threads" in result.output
    assert tomllib.loads((path / "config.toml").read_text())["api"]["port"] == 9000


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("api.port", "99999", "must be from 0 to 65535"),
        ("api.port", "x", "api.port"),
        ("nope.x", "1", "no such setting"),
    ],
)
def test_a_wrong_value_is_the_commands_and_blames_no_file_and_no_flag(invoke, folder, key, value, said):
    path = folder("[api]\nport = 1\n")
    result = invoke("config", "set", key, value, "--data-dir", str(path))
    assert result.exit_code == 64
    assert said in result.output
    assert "(from" not in result.output
    assert (path / "config.toml").read_text() == "[api]\nport = 1\n"


def test_a_file_that_is_no_toml_is_left_alone(invoke, folder):
    path = folder("[api\nport = 1\n")
    result = invoke("config", "set", "api.port", "2", "--data-dir", str(path))
    assert result.exit_code == 64
    assert "cannot be read" in result.output
    assert (path / "config.toml").read_text() == "[api\nport = 1\n"
