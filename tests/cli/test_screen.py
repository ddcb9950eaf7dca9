import sys
import types

import pytest

from meshnode.cli.screen import Screen, command_line
from meshnode.config import load_config

ROW = {"reference": "starter", "phase": "importing", "done_bytes": 25, "total_bytes": 100}


def settings(tmp_path, **flags):
    return load_config(flags=flags, env={}, file=tmp_path / "none")


class Terminal:
    """Understands as much as the screen uses: new lines, carriage returns and erasing to the end of a line."""

    def __init__(self):
        self.lines, self.is_gone = [""], False

    def write(self, text):
        if self.is_gone:
            raise OSError(5, "Input/output error")
        for piece in text.replace("\r\x1b[K", "\0").splitlines(keepends=True):
            for part in piece.split("\0")[1:]:
                self.lines[-1] = part.rstrip("\n")
            if "\0" not in piece:
                self.lines[-1] += piece.rstrip("\n")
            if piece.endswith("\n"):
                self.lines.append("")

    def flush(self):
        if self.is_gone:
            raise OSError(5, "Input/output error")

    def isatty(self):
        return True


@pytest.fixture
def terminal():
    return Terminal()


@pytest.fixture
def screen(terminal, tmp_path):
    return Screen(terminal, settings(tmp_path))


def test_log_lines_stand_above_the_progress_line(screen, terminal):
    screen.log.write("one\n")
    screen.show_progress([ROW])
    screen.log.write("two\n")
    assert terminal.lines[:2] == ["one", "two"]
    assert terminal.lines[2].startswith("importing    [########                      ]  25 %")
    screen.show_progress([{**ROW, "done_bytes": 50}])
    assert "50 %" in terminal.lines[2]
    screen.show_progress([])
    screen.log.write("three\n")
    assert terminal.lines == ["one", "two", "three", ""]


def test_several_acquisitions_are_counted_and_no_line_wraps(screen, terminal, monkeypatch):
    screen.show_progress([ROW, ROW, ROW])
    assert terminal.lines[-1].endswith("and 2 more")
    monkeypatch.setenv("COLUMNS", "20")
    screen.show_progress([ROW])
    assert len(terminal.lines[-1]) == 19


def test_the_first_model_comes_with_a_command_to_paste(screen, terminal):
    screen.show_address("http://127.0.0.1:8800", has_models=True)
    screen.show_model("a")
    screen.show_model("b\x1b[2J")
    text = "\n".join(terminal.lines)
    assert "http://127.0.0.1:8800/v1" in text
    assert 'meshnode chat "Why is the sky blue?"' in text
    assert text.count("Why is the sky blue?") == 1
    assert "models add" not in text
    assert "\nb[2J is ready.\n" in text


def test_without_a_model_the_next_step_is_to_add_one(screen, terminal):
    screen.show_address("http://127.0.0.1:8800", has_models=False)
    assert any(line.endswith("meshnode models add starter") for line in terminal.lines)


def test_a_terminal_that_goes_away_does_not_end_the_node(screen, terminal):
    screen.show_progress([ROW])
    terminal.is_gone = True
    screen.log.write("log\n")
    screen.log.flush()
    screen.show_progress([{**ROW, "done_bytes": 50}])
    screen.show_model("a")
    screen.close()


def test_a_command_to_paste_names_the_folder_only_if_it_was_chosen(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/venv/bin/meshnode"])
    assert command_line(settings(tmp_path), "token") == "meshnode token"
    chosen = settings(tmp_path, **{"node.data_dir": "/my data"})
    assert command_line(chosen, "token") == "meshnode token --data-dir '/my data'"
    monkeypatch.setattr(sys, "argv", ["/src/meshnode/__main__.py"])
    assert command_line(settings(tmp_path), "token") == "python -m meshnode token"


@pytest.mark.parametrize(
    ("is_terminal", "log_format", "has_screen"), [(True, "auto", True), (True, "json", False), (False, "auto", False)]
)
def test_run_has_a_screen_on_a_terminal_that_is_for_people(invoke, monkeypatch, is_terminal, log_format, has_screen):
    got = []
    process = types.ModuleType("meshnode.node.process")
    process.run_node = lambda loaded, screen: got.append(screen) or 0
    monkeypatch.setitem(sys.modules, "meshnode.node.process", process)
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda _: is_terminal)
    assert invoke("run", env={"MESHNODE_LOG_FORMAT": log_format}).exit_code == 0
    assert [screen is not None for screen in got] == [has_screen]
