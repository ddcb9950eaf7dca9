"""The worker's end of the socket to its daemon: two threads read it, and what one has read is not waited for by the other."""

import os
import select
import socket
import time
from types import SimpleNamespace

import pytest

from meshnode.engine import worker_port
from meshnode.engine.worker_messages import Envelope, Ping, Pong, StatsRequest, to_worker_codec
from meshnode.engine.worker_port import WorkerPort


class Daemon:
    """The other end, and a deputy that looks in when it is told to."""

    def __init__(self, monkeypatch):
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(20)
        self.port, self.codec = WorkerPort(theirs), to_worker_codec()
        self._naps = iter(())
        monkeypatch.setattr(
            worker_port, "time", SimpleNamespace(monotonic=time.monotonic, sleep=lambda _: next(self._naps))
        )

    def ask(self, exchange, message):
        self.socket.sendall(self.codec.encode(Envelope(exchange, message)))

    def deputy_looks_in(self):
        self._naps = iter([None])
        with pytest.raises(StopIteration):
            self.port.look_in_for_ever()

    def close(self):
        self.socket.close()
        self.port.socket.close()


@pytest.fixture
def daemon(monkeypatch):
    daemon = Daemon(monkeypatch)
    yield daemon
    daemon.close()


def test_a_question_that_the_deputy_has_read_ends_the_wait(daemon):
    daemon.port.busy_since = time.monotonic()
    daemon.ask(1, StatsRequest())
    daemon.ask(2, Ping())
    daemon.deputy_looks_in()
    (pong,) = daemon.codec.feed(daemon.socket.recv(1 << 16))
    assert pong.exchange == 2
    assert isinstance(pong.message, Pong)
    daemon.port.busy_since = None
    began = time.monotonic()
    assert daemon.port.wait(60) == frozenset(), "nothing has stirred: it had been read before"
    assert time.monotonic() - began < 30
    assert daemon.port.ask() == Envelope(1, StatsRequest())
    assert daemon.port.next() is None


def test_the_deputy_reads_nothing_while_nobody_computes(daemon):
    daemon.ask(1, StatsRequest())
    daemon.deputy_looks_in()
    assert daemon.port.next() is None
    assert daemon.port.wait(60) == {daemon.port.socket.fileno()}
    assert daemon.port.next() == Envelope(1, StatsRequest())
    assert daemon.port.wait(0) == frozenset()


def test_the_wait_ends_with_whatever_stirs_and_says_what_it_was(daemon):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        daemon.port.poller.register(ours, select.POLLIN)
        assert daemon.port.wait(0) == frozenset()
        theirs.send(b"!")
        assert daemon.port.wait(60) == {ours.fileno()}
        daemon.ask(1, StatsRequest())
        assert daemon.port.wait(60) == {ours.fileno(), daemon.port.socket.fileno()}
        daemon.port.poller.unregister(ours)
    assert daemon.port.ask().exchange == 1


def test_the_process_ends_with_the_daemon_whichever_thread_hears_of_it(daemon, monkeypatch):
    class Ended(BaseException):
        pass

    def end(code):
        raise Ended(code)

    monkeypatch.setattr(os, "_exit", end)
    daemon.socket.close()
    with pytest.raises(Ended):
        daemon.port.wait()
    daemon.port.busy_since = time.monotonic()
    with pytest.raises(Ended):
        daemon.deputy_looks_in()
