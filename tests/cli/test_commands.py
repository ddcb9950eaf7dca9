import json
import subprocess
import sys
import time

import pytest

HEAVY = ["torch", "numpy", "libp2p", "quart", "quart_trio", "trio", "plyvel", "httpx", "tomlkit"]


@pytest.mark.processes
@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["status"], ["run", "--help"], []])
def test_quick_commands_load_nothing_heavy(arguments, tmp_path):
    script = f"""
import sys
from meshnode.cli.main import root
try:
    root({arguments!r}, prog_name="meshnode")
except SystemExit:
    pass
sys.stderr.write("LOADED " + " ".join(name for name in {HEAVY!r} if name in sys.modules) + "|")
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert "LOADED |" in result.stderr, result.stderr


@pytest.mark.processes
def test_a_node_that_runs_is_asked_without_anything_heavy_either(node, tmp_path):
    test_quick_commands_load_nothing_heavy(["status"], tmp_path)
    assert node.requests == [("GET", "/api/admin/status", None)]


@pytest.mark.processes
def test_the_module_alone_prints_help():
    result = subprocess.run([sys.executable, "-m", "meshnode"], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert "Commands:" in result.stdout
    assert "meshnode chat" in result.stdout


@pytest.mark.parametrize("command", ["run", "status", "chat", "models", "token", "config"])
def test_every_command_has_help_with_an_example(invoke, command):
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert f"Examples:\n    meshnode {command}" in result.stdout or "Examples:" in result.stdout


def test_status_prints_what_the_node_says(node, invoke):
    node.answers["GET", "/api/admin/status"] = {
        "version": "9.9",
        "node": "box",
        "pid": 7,
        "uptime": 3700.5,
        "subsystems": [
            {"name": "ApiServer", "state": "running", "restarts": 0, "last_error": None},
            {"name": "InferenceRouter", "state": "backing off", "restarts": 3, "last_error": "it broke\x1b[2J"},
        ],
        "models": [{"name": "m", "id": "f" * 64, "loaded": False, "detail": "loading", "context_length": 2048}],
        "workers": [{"model": "m", "blocks": "0:30", "device": "cpu", "restarts": 1}],
        "conditions": [{"code": "x", "subsystem": "ModelKeeper", "text": "the disk is full"}],
        "acquisitions": [
            {"reference": "old", "phase": "done", "done_bytes": 1, "total_bytes": 1},
            {"reference": "starter", "phase": "importing", "done_bytes": 1, "total_bytes": 4},
            {"reference": "bad", "phase": "failed", "error": "not a GGUF file"},
        ],
    }
    lines = invoke("status").stdout.splitlines()
    assert lines[0] == f"meshnode 9.9 on box, at http://127.0.0.1:{node.port}, process 7, running for 1:01:40"
    for line in (
        "ApiServer        running      0",
        "InferenceRouter  backing off  3         it broke[2J",
        "m     ffffffffffff                2048     -     -       -       loading",
        "m           0:30    cpu     1",
        "ModelKeeper   the disk is full",
        "bad        not a GGUF file",
    ):
        assert line in lines
    assert any(line.startswith("starter    importing") and " 25 %" in line for line in lines)
    assert not any(line.startswith("old") for line in lines)
    assert json.loads(invoke("status", "--json").stdout)["version"] == "9.9"


def test_status_of_a_node_without_models_names_the_next_step(node, invoke):
    assert "meshnode models add starter" in invoke("status").stdout


def test_json_can_be_asked_for_by_the_environment(node, invoke):
    assert json.loads(invoke("status", env={"MESHNODE_JSON": "1"}).stdout) == {"version": "1", "models": []}


def test_an_address_that_is_none_is_one_line(node, invoke):
    result = invoke("status", env={"MESHNODE_HOST": "no such\thost", "MESHNODE_PORT": "1"})
    assert result.exit_code == 1
    assert result.stderr.startswith("meshnode: http://no such\thost:1 is no address")


def test_no_node_names_the_next_step(invoke, tmp_path):
    result = invoke("status")
    assert result.exit_code == 1
    assert "meshnode run" in result.stderr
    assert str(tmp_path) in result.stderr


def test_a_node_that_died_is_not_a_traceback(node, invoke, tmp_path):
    (tmp_path / "runtime.json").write_text('{"host": "127.0.0.1", "port": 1, "pid": 1}')
    result = invoke("status")
    assert result.exit_code == 1
    assert "no node answers at http://127.0.0.1:1" in result.stderr


def test_a_wrong_key_says_which_file_it_came_from(node, invoke, tmp_path):
    (tmp_path / "api_key").write_text("wrong")
    result = invoke("status")
    assert result.exit_code == 1
    assert str(tmp_path / "api_key") in result.stderr


def test_the_port_can_be_given_instead_of_the_runtime_file(node, invoke, tmp_path):
    (tmp_path / "runtime.json").unlink()
    assert invoke("status", "--port", str(node.port)).exit_code == 0
    assert invoke("status", env={"MESHNODE_PORT": str(node.port)}).exit_code == 0


def test_something_else_on_the_port_is_said_so(node, invoke):
    node.answers["GET", "/api/admin/status"] = (200, "<html>")
    result = invoke("status")
    assert result.exit_code == 1
    assert "is it a meshnode" in result.stderr


def test_token_prints_the_key(node, invoke):
    assert invoke("token").stdout == "right-key\n"
    assert json.loads(invoke("token", "--json").stdout) == {"token": "right-key"}


def test_token_without_a_key_names_the_next_step(invoke):
    result = invoke("token")
    assert result.exit_code == 1
    assert "meshnode run" in result.stderr


def test_spreading_is_asked_of_the_node(node, invoke):
    node.answers["POST", "/api/admin/models"] = {"name": "m"}
    node.answers["GET", "/api/admin/status"] = {"acquisitions": []}
    assert invoke("models", "add", "hf:a/b", "--spread").stdout == "added m\n"
    assert ("POST", "/api/admin/models", {"reference": "hf:a/b", "blocks": None, "spread": True}) in node.requests
    refused = invoke("models", "add", "hf:a/b", "--spread", "--blocks", "0:3")
    assert refused.exit_code == 2
    assert "exclude each other" in refused.output


def test_spreading_needs_a_node(invoke):
    refused = invoke("models", "add", "hf:a/b", "--spread")
    assert refused.exit_code == 2
    assert "needs other nodes" in refused.output


def test_models_are_listed_by_the_node(node, invoke):
    entry = {"name": "m", "id": "f" * 64, "loaded": True, "context_length": 2048, "quantization": "Q4_1"}
    entry |= {"shards": 33, "shards_held": 12, "copies": 2, "routes": 1}
    node.answers["GET", "/api/admin/models"] = {"models": [entry]}
    text = invoke("models", "list").stdout
    assert "ffffffffffff " in text
    assert text.splitlines()[1].split()[3:] == ["2048", "12/33", "2", "1", "loaded"]
    assert json.loads(invoke("models", "list", "--json").stdout) == {"models": [entry]}


def test_adding_shows_progress_and_the_name(node, invoke, monkeypatch):
    import threading

    seen = threading.Event()
    progress = {"reference": "starter", "phase": "downloading", "done_bytes": 1, "total_bytes": 2000}

    def status(_):
        if ("POST", "/api/admin/models", {"reference": "starter", "blocks": "0:3"}) in node.requests:
            seen.set()
        return {"acquisitions": [progress]}

    def added(_):
        assert seen.wait(10)
        return 201, {"name": "smol"}

    node.answers["GET", "/api/admin/status"] = status
    node.answers["POST", "/api/admin/models"] = added
    monkeypatch.setattr("meshnode.cli.models._POLL", 0.01)
    result = invoke("models", "add", "starter", "--blocks", "0:3")
    assert (result.exit_code, result.stdout) == (0, "added smol\n"), result.stderr
    assert result.stderr == "downloading 2.0 kB\n"


def test_progress_beside_json_is_for_a_person_only(node, invoke, monkeypatch):
    shown = []
    monkeypatch.setattr("meshnode.cli.models.ProgressBar.show", lambda bar, _: shown.append(bar.enabled))
    monkeypatch.setattr("meshnode.cli.models._POLL", 0.01)
    node.answers["GET", "/api/admin/status"] = {"acquisitions": [{"reference": "starter", "phase": "importing"}]}

    def added(_):
        while not shown:
            time.sleep(0.01)
        return 201, {"name": "smol"}

    node.answers["POST", "/api/admin/models"] = added
    for is_terminal in (False, True):
        monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda _, answer=is_terminal: answer)
        shown.clear()
        result = invoke("models", "add", "starter", "--json")
        assert json.loads(result.stdout) == {"name": "smol"}
        assert set(shown) == {is_terminal}


REPORTING = {
    "status": {"version", "models"},
    "chat hello": {"text", "model", "finish_reason", "usage"},
    "models list": {"models"},
    "models add starter": {"name"},
    "models remove m": {"removed"},
    "models wishlist": {"models", "age_seconds"},
    "token": {"token"},
    "config show": {"api.port"},
    "config set api.port 9": {"key", "value", "file"},
}


@pytest.mark.parametrize("command", REPORTING)
def test_every_command_that_reports_does_so_in_json_too(node, invoke, sse, command):
    node.answers |= {
        ("GET", "/v1/models"): {"data": [{"id": "m", "loaded": True}]},
        ("GET", "/api/admin/models"): {"models": []},
        ("GET", "/api/admin/wishlist"): {"models": [], "age_seconds": 7.2},
        ("POST", "/api/admin/models"): {"name": "m"},
        ("DELETE", "/api/admin/models/m"): {"removed": "m"},
        ("POST", "/v1/chat/completions"): [sse("hi"), "data: [DONE]\n\n"],
    }
    result = invoke(*command.split(), "--json")
    assert result.exit_code == 0, result.stderr
    assert REPORTING[command] <= json.loads(result.stdout).keys()


def test_every_command_but_run_reports_and_so_takes_json():
    from meshnode.cli.main import root

    def without(group, *path):
        for name in group.list_commands(None):
            inner = group.get_command(None, name)
            if hasattr(inner, "commands"):
                yield from without(inner, *path, name)
            elif not any("--json" in option.opts for option in inner.params):
                yield " ".join((*path, name))

    assert [*without(root)] == ["run"]


def test_a_local_path_is_sent_absolute(node, invoke, tmp_path, monkeypatch):
    (tmp_path / "m.gguf").write_text("")
    monkeypatch.chdir(tmp_path)
    node.answers["POST", "/api/admin/models"] = (422, {"error": {"message": "not a GGUF file"}})
    result = invoke("models", "add", "m.gguf")
    assert (result.exit_code, result.stderr) == (1, "meshnode: not a GGUF file\n")
    assert ("POST", "/api/admin/models", {"reference": str(tmp_path / "m.gguf"), "blocks": None}) in node.requests


def test_blocks_can_come_from_the_environment(node, invoke):
    node.answers["POST", "/api/admin/models"] = (201, {"name": "smol", "here": "blocks 0:3", "missing": "the head"})
    added = invoke("models", "add", "starter", env={"MESHNODE_BLOCKS": "0:3"})
    assert added.stdout == "added smol: blocks 0:3; not here: the head\n"
    assert ("POST", "/api/admin/models", {"reference": "starter", "blocks": "0:3"}) in node.requests


def test_a_node_that_goes_away_during_an_acquisition_is_one_line(node, invoke, monkeypatch):
    import threading

    gone = threading.Event()

    def vanish(_):
        node.server.socket.close()  # nobody can connect any more
        gone.set()
        raise ConnectionAbortedError

    node.server.handle_error = lambda *_: None
    node.answers["POST", "/api/admin/models"] = vanish
    monkeypatch.setattr("meshnode.cli.models._POLL", 0.01)
    result = invoke("models", "add", "starter")
    assert gone.is_set()
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1


def test_bad_blocks_are_wrong_usage(invoke):
    for command in (("models", "add", "starter"), ("run",)):
        refused = invoke(*command, "--blocks", "3:1")
        assert refused.exit_code == 2
        assert "--blocks" in refused.output


def test_the_wishlist_says_how_old_it_is(node, invoke):
    node.answers["GET", "/api/admin/wishlist"] = {"models": [{"name": "m", "reasons": ["rare"]}], "age_seconds": 7.2}
    assert invoke("models", "wishlist").stdout.splitlines()[-1] == "as of 7 s ago"


def test_removing_quotes_the_name_and_passes_a_404_on(node, invoke):
    node.answers["DELETE", "/api/admin/models/a%2Fb"] = {"removed": "a/b"}
    assert invoke("models", "remove", "a/b").stdout == "removed a/b\n"
    node.answers["DELETE", "/api/admin/models/a%2Fb"] = (409, {"error": {"message": "nobody else has it; --force"}})
    node.answers["DELETE", "/api/admin/models/a%2Fb?force=true"] = {"removed": "a/b"}
    assert invoke("models", "remove", "a/b").stderr == "meshnode: nobody else has it; --force\n"
    assert invoke("models", "remove", "a/b", "--force").stdout == "removed a/b\n"
    result = invoke("models", "remove", "zzz")
    assert result.exit_code == 1
    assert "zzz" in result.stderr


def test_naming_the_port_of_no_node_does_not_fall_back_to_the_folder(node, invoke):
    result = invoke("models", "list", "--port", "1")
    assert result.exit_code == 1
    assert "no node answers" in result.stderr


def test_run_hands_the_settings_over_and_exits_with_the_node_s_code(invoke, monkeypatch):
    import types

    got = []
    process = types.ModuleType("meshnode.node.process")
    process.run_node = lambda loaded, screen: got.append(loaded) or 69
    monkeypatch.setitem(sys.modules, "meshnode.node.process", process)
    command = "run --host 0.0.0.0 --port 0 --model a --model b --blocks 0:4 --threads 3 --device cpu --offline"
    result = invoke(*command.split(), "--log-level", "debug", "--no-browser")
    assert result.exit_code == 69, result.output
    config = got[0].config
    assert (config.api.host, config.api.port, config.api.open_browser) == ("0.0.0.0", 0, False)
    assert (config.models.names, config.models.blocks) == (("a", "b"), "0:4")
    assert (config.engine.threads, config.engine.device) == (3, "cpu")
    assert (config.node.offline, config.log.level) == (True, "debug")


def test_flags_that_were_not_given_leave_the_environment_alone(invoke, monkeypatch):
    import types

    got = []
    process = types.ModuleType("meshnode.node.process")
    process.run_node = lambda loaded, screen: got.append(loaded) or 0
    monkeypatch.setitem(sys.modules, "meshnode.node.process", process)
    env = {"MESHNODE_OFFLINE": "1", "MESHNODE_MODEL": "x", "MESHNODE_NO_BROWSER": "yes"}
    assert invoke("run", env=env).exit_code == 0
    config = got[0].config
    assert (config.node.offline, config.models.names, config.api.open_browser) == (True, ("x",), False)


def test_a_wrong_setting_is_exit_code_64(invoke, tmp_path):
    (tmp_path / "config.toml").write_text("[api]\nprot = 1\n")
    result = invoke("run")
    assert result.exit_code == 64
    assert "did you mean api.port" in result.stderr


def test_an_unknown_flag_is_exit_code_2(invoke):
    assert invoke("run", "--nonsense").exit_code == 2


def test_config_set_keeps_comments_and_show_names_the_origin(invoke, tmp_path):
    file = tmp_path / "config.toml"
    file.write_text("# mine\n[api]\nport = 1 # why\n")
    assert invoke("config", "set", "api.port", "9000").exit_code == 0
    assert invoke("config", "set", "models.names", "a,b").exit_code == 0
    assert "# mine\n[api]\nport = 9000 # why\n" in file.read_text()
    shown = json.loads(invoke("config", "show", "--json").stdout)
    assert shown["api.port"] == {"value": 9000, "origin": f"file {file}"}
    assert shown["models.names"]["value"] == ["a", "b"]
    assert "api.port" in invoke("config", "show").stdout


def test_config_set_writes_the_file_that_is_read(invoke, tmp_path, monkeypatch):
    monkeypatch.delenv("MESHNODE_DATA_DIR")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert invoke("config", "set", "node.data_dir", str(tmp_path / "big")).exit_code == 0
    assert invoke("config", "set", "chat.seed", "5").exit_code == 0
    shown = json.loads(invoke("config", "show", "--json").stdout)
    assert shown["node.data_dir"]["value"] == str(tmp_path / "big")
    assert shown["chat.seed"]["value"] == 5
    assert not (tmp_path / "big").exists()


def test_config_set_leaves_a_link_in_place(invoke, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "config.toml").symlink_to(tmp_path / "elsewhere" / "mine.toml")
    assert invoke("config", "set", "api.port", "9").exit_code == 0
    assert (tmp_path / "config.toml").is_symlink()
    assert "port = 9" in (tmp_path / "elsewhere" / "mine.toml").read_text()


@pytest.mark.parametrize(
    ("key", "value"), [("api.prot", "1"), ("api.port", "x"), ("api.port", "70000"), ("node.data_dir", "/x")]
)
def test_config_set_refuses_and_leaves_the_file(invoke, tmp_path, key, value):
    file = tmp_path / "config.toml"
    file.write_text("[api]\nport = 1\n")
    result = invoke("config", "set", key, value)
    assert result.exit_code == 64
    assert key in result.stderr
    assert file.read_text() == "[api]\nport = 1\n"
    assert [path.name for path in tmp_path.iterdir()] == ["config.toml"]


def test_every_flag_is_also_a_variable_and_a_setting(tmp_path):
    """`--no-browser` is the one that is the other way round in the file: api.open_browser."""
    from meshnode.cli.main import root
    from meshnode.config.loading import FLAG_VARIABLES, known_keys, load_config

    names = []
    variables = {*FLAG_VARIABLES, "MESHNODE_NO_BROWSER"}
    variables |= {"MESHNODE_" + key.replace(".", "_").upper() for key in known_keys()}
    seen = set()

    def look(command, prefix):
        for name, inner in getattr(command, "commands", {}).items():
            look(inner, f"{prefix} {name}")
        for option in command.params:
            for flag in option.opts:
                if flag.startswith("--"):
                    plain = flag.removeprefix("--").replace("-", "_").upper()
                    if option.envvar is not None:  # of this command alone: no setting of a node
                        assert f"MESHNODE_{prefix.upper()}_{plain}" == option.envvar
                        names.append(option.envvar)
                        continue
                    if prefix in ("update release", "update sign") and plain != "JSON":
                        continue  # what is true of one release only: left in an environment it would sign the next one wrongly
                    if flag == "--force":
                        continue  # so is this: left in an environment nothing would be asked for any more
                    section = "CHAT_" if prefix == "chat" else ""
                    assert {f"MESHNODE_{section}{plain}", f"MESHNODE_{plain}"} & variables, f"{prefix} {flag}"
                    seen.add(f"{prefix} {flag}")

    for name in root.list_commands(None):
        look(root.get_command(None, name), name)
    assert names == ["MESHNODE_DEMO_NODES", "MESHNODE_DEMO_TOKENS", "MESHNODE_DEMO_PROMPT"]
    # a node in the same environment is not stopped by them
    load_config(flags={}, env=dict.fromkeys(names, "3"), file=tmp_path / "none")
    assert {"run --blocks", "chat --seed", "models add --blocks", "status --json", "config set --data-dir"} <= seen
