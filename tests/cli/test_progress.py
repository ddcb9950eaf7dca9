import io

import pytest

from meshnode.cli.progress import ProgressBar, drawn


def row(phase, done=0, total=0):
    return {"phase": phase, "done_bytes": done, "total_bytes": total}


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("progress", "line"),
    [
        (row("downloading"), "downloading"),
        (row("downloading", 1500), "downloading  1.5 kB"),
        (row("importing", 0, 10), f"importing    [{' ' * 30}]   0 %  0 B of 10 B"),
        (row("verifying", 10, 10), f"verifying    [{'#' * 30}] 100 %  10 B of 10 B"),
        (row("verifying", 20, 10), f"verifying    [{'#' * 30}] 100 %  20 B of 10 B"),
        (row("x\x1b[2J"), "x[2J"),
    ],
)
def test_a_line_says_phase_share_and_bytes(progress, line):
    assert drawn(progress) == line


def test_elsewhere_than_on_a_terminal_each_phase_has_one_line(capsys):
    bar = ProgressBar()
    for progress in (
        row("downloading", 1, 2000),
        row("downloading", 2, 2000),
        row("importing"),
        row("failed"),
        row("done"),
    ):
        bar.show(progress)
    bar.finish()
    assert capsys.readouterr().err == "downloading 2.0 kB\nimporting\n"


def test_on_a_terminal_one_line_is_rewritten_and_ended_once(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    bar = ProgressBar()
    bar.show(row("downloading", 1, 2))
    bar.show(row("downloading", 2, 2))
    bar.finish()
    bar.finish()
    lines = terminal.getvalue().split("\r\x1b[K")
    assert [line[-12:] for line in lines[1:]] == ["  1 B of 2 B", " 2 B of 2 B\n"]


def test_nothing_is_drawn_for_programs(capsys):
    ProgressBar(enabled=False).show(row("downloading"))
    assert capsys.readouterr().err == ""
