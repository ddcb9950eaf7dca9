"""Commands find the node and its key, or say how to be told."""

import pytest

KEY = "right-key"  # the one that the fake node of conftest takes
ASKING = ["status", "chat hello --model m", "models list", "models add starter", "models remove m"]


@pytest.mark.parametrize("command", ASKING)
@pytest.mark.parametrize("way", ["flag", "variable", "file"])
def test_a_key_that_is_not_in_the_folder_can_be_given_to_every_command(node, invoke, tmp_path, sse, command, way):
    (tmp_path / "api_key").unlink()
    (tmp_path / "runtime.json").unlink()
    node.answers |= {
        ("GET", "/api/admin/models"): {"models": []},
        ("POST", "/api/admin/models"): {"name": "m"},
        ("DELETE", "/api/admin/models/m"): {"removed": "m"},
        ("POST", "/v1/chat/completions"): [sse("hi"), "data: [DONE]\n\n"],
    }
    if way == "file":
        (tmp_path / "config.toml").write_text(f"[api]\nkey = '{KEY}'\n")
    extra = ["--api-key", KEY] if way == "flag" else []
    env = {"MESHNODE_API_KEY": KEY} if way == "variable" else {}
    result = invoke(*command.split(), "--port", str(node.port), *extra, env=env)
    assert result.exit_code == 0, result.stderr


@pytest.mark.parametrize("command", ASKING)
def test_without_a_key_every_command_says_how_to_give_one(node, invoke, tmp_path, command):
    (tmp_path / "api_key").unlink()
    result = invoke(*command.split(), "--port", str(node.port))
    assert result.exit_code == 1
    assert "MESHNODE_API_KEY or --api-key" in result.stderr


def test_a_wrong_key_that_was_given_is_named_by_its_origin_and_not_quoted(node, invoke):
    result = invoke("status", env={"MESHNODE_API_KEY": "not-this-one"})
    assert result.exit_code == 1
    assert "the key from environment MESHNODE_API_KEY" in result.stderr
    assert "not-this-one" not in result.stderr


def test_a_folder_of_another_user_says_how_to_reach_its_node(node, invoke, monkeypatch):
    monkeypatch.setattr("pathlib.Path.read_bytes", lambda _: (_ for _ in ()).throw(PermissionError(13, "denied")))
    result = invoke("status")
    assert result.exit_code == 1
    assert "--port" in result.stderr
    assert "MESHNODE_API_KEY" in result.stderr


def test_the_settings_hide_the_key(invoke):
    env = {"MESHNODE_API_KEY": "a-secret-key"}
    for extra in ([], ["--json"]):
        shown = invoke("config", "show", *extra, env=env).stdout
        assert "a-secret-key" not in shown
        assert "(set)" in shown
        written = invoke("config", "set", "api.key", "a-secret-key", *extra)
        assert (written.exit_code, "a-secret-key" in written.stdout) == (0, False)
    assert invoke("token").stdout == "a-secret-key\n"
