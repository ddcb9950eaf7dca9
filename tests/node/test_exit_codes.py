"""The exit code says who can help: 64 the operator, 69 and 70 nobody but a restart or a developer."""

import io
import signal
import sys

import pytest
import structlog

from meshnode.config.loading import load_config
from meshnode.errors import ConfigError, Fatal, StoreError
from meshnode.node import process
from meshnode.node.process import exit_code_of, run_node
from meshnode.supervise.subsystem import SubsystemFailed


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), 64),
        (StoreError("x"), 64),
        (ExceptionGroup("g", [ExceptionGroup("h", [ConfigError("x")])]), 64),
        (SubsystemFailed("x"), 69),
        (ExceptionGroup("g", [ConfigError("x"), SubsystemFailed("y")]), 69),
        (Fatal("x", exit_code=3), 3),
        (ExceptionGroup("g", [SubsystemFailed("y"), Fatal("x", exit_code=64)]), 64),
        (ValueError("a bug"), 70),
        (ExceptionGroup("g", [ConfigError("x"), ValueError("a bug")]), 70),
    ],
)
def test_the_gravest_cause_decides(error, code):
    assert exit_code_of(error) == code


class _Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def run_that_ends_with(monkeypatch, tmp_path):
    """Return a function that runs a node whose opening raises, and returns the exit code and what was printed."""

    def run(error, stream):
        monkeypatch.setattr(sys, "stderr", stream)

        def refuse(*_args, **_kwargs):
            raise error

        monkeypatch.setattr(process, "open_node", refuse)
        loaded = load_config(flags={"node.data_dir": tmp_path}, env={}, file=None)
        return run_node(loaded), stream.getvalue()

    configured = structlog.get_config()
    yield run
    structlog.configure(**configured)


def test_on_a_terminal_a_refusal_is_one_plain_line(run_that_ends_with):
    code, printed = run_that_ends_with(ConfigError("port 8800 on 127.0.0.1 is in use"), _Terminal())
    assert (code, printed) == (64, "meshnode: port 8800 on 127.0.0.1 is in use\n")


def test_elsewhere_it_is_one_json_line(run_that_ends_with):
    code, printed = run_that_ends_with(ConfigError("port 8800 on 127.0.0.1 is in use"), io.StringIO())
    assert code == 64
    assert printed.count("\n") == 1
    assert '"event": "port 8800 on 127.0.0.1 is in use"' in printed


def test_a_bug_has_its_traceback(run_that_ends_with):
    code, printed = run_that_ends_with(ZeroDivisionError("a bug"), _Terminal())
    assert code == 70
    assert "Traceback" in printed
    assert "ZeroDivisionError: a bug" in printed


def test_an_interrupt_before_signals_are_listened_to_has_the_shells_code(run_that_ends_with):
    assert run_that_ends_with(KeyboardInterrupt(), io.StringIO()) == (130, "")


def test_signal_handlers_are_as_before_when_the_node_has_ended(run_that_ends_with):
    before = signal.getsignal(signal.SIGTERM)
    run_that_ends_with(ConfigError("x"), io.StringIO())
    assert signal.getsignal(signal.SIGTERM) is before
