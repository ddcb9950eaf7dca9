import json

import pytest

from meshnode.node.data_folder import hold_data_folder


def test_an_empty_folder_lists_nothing_and_is_left_empty(invoke, tmp_path):
    result = invoke("models", "list")
    assert result.exit_code == 0, result.output
    assert "models add starter" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_removing_what_is_not_there_is_one_line(invoke):
    result = invoke("models", "remove", "nothing")
    assert result.exit_code == 1
    assert "there is no model 'nothing'" in result.stderr
    assert "Traceback" not in result.output


def test_a_reference_that_no_source_knows_is_one_line(invoke):
    result = invoke("models", "add", "nonsense")
    assert result.exit_code == 1
    assert result.stderr.startswith("meshnode: 'nonsense' is not a model reference")


def test_a_folder_held_by_a_node_is_left_alone(invoke, tmp_path):
    with hold_data_folder(tmp_path):
        result = invoke("models", "remove", "m")
    assert result.exit_code == 64
    assert "in use by another node" in result.stderr


def test_ctrl_c_ends_with_130(invoke, monkeypatch):
    async def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("meshnode.flow.mailbox.Mailbox.ask", interrupted)
    result = invoke("models", "add", "starter")
    assert result.exit_code == 130, result.output


@pytest.mark.starter
def test_a_model_is_added_listed_and_removed_without_a_node(invoke, starter_gguf):
    added = invoke("models", "add", str(starter_gguf))
    assert added.exit_code == 0, added.output
    assert "importing" in added.stderr
    name = added.stdout.removeprefix("added ").strip()
    listed = json.loads(invoke("models", "list", "--json").stdout)["models"]
    assert [entry["name"] for entry in listed] == [name]
    assert invoke("models", "remove", name).stdout == f"removed {name}\n"
    assert json.loads(invoke("models", "list", "--json").stdout) == {"models": []}
