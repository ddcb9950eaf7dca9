"""The worker's end of the socket to the daemon.

Whoever waits for a question reads it from the socket itself: a token spares a switch of threads. While the main thread computes
nobody waits, so a deputy looks in now and then, and answers pings even in the middle of a long step.
"""

import os
import queue
import select
import socket
import sys
import threading
import time
from typing import NoReturn

import attrs

from meshnode.engine.worker_messages import Envelope, FrameCodec, Ping, Pong, from_worker_codec
from meshnode.errors import WireError

__all__ = ["WorkerPort"]

_READ = 1 << 20  # bytes
_LOOK = 0.25  # seconds between two looks of the deputy


@attrs.define(eq=False)
class WorkerPort:
    """Sending is safe from both threads; questions are for the main thread alone. The process ends when the socket does."""

    socket: socket.socket
    poller: "select.poll" = attrs.field(factory=select.poll, init=False)  # of all that the main thread waits for
    busy_since: float | None = None  # time.monotonic(), while the main thread computes
    _questions: "queue.SimpleQueue[Envelope]" = attrs.field(factory=queue.SimpleQueue, init=False)
    _codec: FrameCodec = attrs.field(factory=from_worker_codec, init=False)
    _sending: threading.Lock = attrs.field(factory=threading.Lock, init=False)
    _reading: threading.Lock = attrs.field(factory=threading.Lock, init=False)

    def __attrs_post_init__(self) -> None:
        self.poller.register(self.socket, select.POLLIN)

    def send(self, envelope: Envelope) -> None:
        """Send one message; blocks while the daemon does not read. The process ends when the daemon has gone."""
        with self._sending:
            try:
                self.socket.sendall(self._codec.encode(envelope))
            except ConnectionError as error:
                _end(error)

    def wait(self, timeout: float | None = None) -> frozenset[int]:
        """Wait until something comes, for `timeout` seconds at most, and take what the daemon has sent.

        Return what has stirred of all that the poller watches, the daemon's socket included; nothing when the time is up.
        """
        with self._reading:  # what the deputy is at is done then, and while nobody computes it begins nothing more
            if not self._questions.empty():
                timeout = 0
        found = frozenset(descriptor for descriptor, _ in self.poller.poll(None if timeout is None else 1000 * timeout))
        if self.socket.fileno() in found:
            with self._reading:
                self._read()
        return found

    def ask(self) -> Envelope:
        """Return the next question, which is all that is waited for."""
        while (found := self.next()) is None:
            self.wait()
        return found

    def next(self) -> Envelope | None:
        """Return the next question of those that have been taken."""
        return None if self._questions.empty() else self._questions.get()

    def look_in_for_ever(self) -> None:
        """Be the deputy: read what comes while the main thread is at something else."""
        while True:
            time.sleep(_LOOK)
            if self._reading.acquire(blocking=False):
                try:
                    if self.busy_since is not None:
                        self._read()
                finally:
                    self._reading.release()

    def _read(self) -> None:
        """Take what is there; at the end of the stream the process ends, whatever the main thread is doing."""
        try:
            data = self.socket.recv(_READ, socket.MSG_DONTWAIT)
            for envelope in self._codec.feed(data):
                if isinstance(envelope.message, Ping):
                    since = self.busy_since
                    silent = 0.0 if since is None else time.monotonic() - since
                    self.send(Envelope(envelope.exchange, Pong(silent)))
                else:
                    self._questions.put(envelope)
        except BlockingIOError:
            return
        except (OSError, WireError) as error:
            _end(error)
        if not data:
            os._exit(0)


def _end(error: Exception) -> NoReturn:
    sys.stderr.write(f"worker: the connection to the daemon broke: {error}\n")
    sys.stderr.flush()
    os._exit(0)
