"""A server over a fake router, on a real socket."""

from contextlib import asynccontextmanager

import attrs
import httpx
import pytest
import trio

from meshnode.api.ports import ApiDependencies, ServedModel
from meshnode.api.responses.archive import open_archive
from meshnode.api.server import ApiServer
from meshnode.api.serving import ServingLimits
from meshnode.errors import LastCopy, MeshnodeError, UnknownModel
from meshnode.observe.metrics import Metrics
from meshnode.store.memory import MemoryStore
from meshnode.supervise.subsystem import Pulse
from meshnode.types.generation import Delta, Finished, FinishReason, Started, TokenLogprob, Usage
from meshnode.types.parts import Added

KEY = "test-key"
MODEL = ServedModel("tiny", "0" * 64, True, 1024, 1_700_000_000, "Q4_0", ("small",))


@attrs.define(eq=False)
class FakeRouter:
    """Says `words`, one event each (text, or a whole Delta), to every request; fails first with `error`, or after `fail_after` words."""

    words: list = attrs.field(factory=lambda: ["Hello", ", ", "world"])
    error: MeshnodeError | None = None
    fail_after: int | None = None
    ending: Finished | None = None  # else what fits the words
    pace: float = 0.0  # seconds before each word
    stops_after: int | None = None  # words, after which it says no more and does not end
    queue: trio.Event | None = None  # the first event waits for it
    requests: list = attrs.field(factory=list)
    running: int = 0
    begun: trio.Event = attrs.field(factory=trio.Event)
    ended: trio.Event = attrs.field(factory=trio.Event)  # set whenever none is running any more

    @asynccontextmanager
    async def generate(self, requests):
        self.requests.append(requests)
        self.running += 1
        self.begun.set()
        if self.ended.is_set():
            self.ended = trio.Event()
        try:
            yield FakeEvents(self, requests)
        finally:
            self.running -= 1
            if not self.running:
                self.ended.set()


class FakeEvents:
    def __init__(self, router, requests):
        self.router, self.items, self.told = router, [], 0
        words = router.words
        for index, _ in enumerate(requests):
            self.items.append((index, Started("tiny", 7, "local 0:2")))
        for number, word in enumerate(words):
            for index, request in enumerate(requests):
                logprobs = ()
                if isinstance(word, Delta):
                    self.items.append((index, word))
                    continue
                if request.sampling.top_logprobs is not None:
                    entry = TokenLogprob(word, -0.25, word.encode())
                    logprobs = (attrs.evolve(entry, top=(entry,)),)
                self.items.append((index, Delta(word, logprobs)))
            if router.fail_after == number + 1:
                self.items.append(router.error)
        for index, _ in enumerate(requests):
            called = any(isinstance(word, Delta) and word.calls for word in words)
            reason = FinishReason.TOOL_CALLS if called else FinishReason.STOP
            self.items.append((index, router.ending or Finished(reason, Usage(7, len(words)))))

    def __aiter__(self):
        return self

    async def __anext__(self):
        await trio.lowlevel.checkpoint()
        if self.router.queue is not None:
            await self.router.queue.wait()
        if self.router.error is not None and self.router.fail_after is None:
            raise self.router.error
        if not self.items:
            raise StopAsyncIteration
        item = self.items.pop(0)
        if isinstance(item, MeshnodeError):
            raise item
        if self.router.stops_after is not None and isinstance(item[1], Delta):
            self.told += 1
            if self.told > self.router.stops_after:
                await trio.sleep_forever()
        if self.router.pace and isinstance(item[1], Delta):
            await trio.sleep(self.router.pace)
        return item

    def waiting(self):
        return []


class FakeMesh:
    """Knows nobody."""

    def peers(self):
        return []


class FakeAdmin:
    """Knows one reference."""

    async def add(self, reference, blocks, *, spread=False):
        if reference != "starter":
            raise UnknownModel(f"nothing is known as {reference!r}", param="reference")
        return Added("tiny", "the tokenizer", "")

    async def remove(self, name, *, force=False):
        if not force:
            raise LastCopy(f"no other node has {name}", param="force")


@attrs.define(eq=False)
class Served:
    server: ApiServer
    dependencies: ApiDependencies
    router: FakeRouter
    port: int
    stopped: list
    streams: list = attrs.field(factory=list)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def client(self, **headers):
        return httpx.AsyncClient(
            base_url=self.url, headers={"Authorization": f"Bearer {KEY}", **headers}, timeout=20, trust_env=False
        )

    async def raw(self, receive_buffer=None):
        line = trio.socket.socket()
        if receive_buffer is not None:  # bytes
            line.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, receive_buffer)
        await line.connect(("127.0.0.1", self.port))
        self.streams.append(trio.SocketStream(line))
        return self.streams[-1]

    def head(self, method, path, extra=""):
        return f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {KEY}\r\n{extra}\r\n".encode()


LIMITS = ServingLimits(write_timeout=5.0, keep_alive_timeout=5.0, max_connections=50, graceful_timeout=5.0)


@pytest.fixture
def serve():
    @asynccontextmanager
    async def start(router=None, limits=LIMITS, unready=(), send_buffer=None, **changes):
        router, stopped = router or FakeRouter(), []
        dependencies = ApiDependencies(
            mesh=FakeMesh(),
            wishes=dict,
            key=KEY,
            generate=router.generate,
            models=lambda: (MODEL,),
            admin=FakeAdmin(),
            status=lambda: {"pid": 1},
            unready=lambda: tuple(unready),
            request_shutdown=lambda: stopped.append(True),
            metrics=Metrics(),
            responses=await open_archive(MemoryStore()),
            requests_per_minute=100_000,
        )
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        if send_buffer is not None:  # of each connection, bytes
            listeners[0].socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_SNDBUF, send_buffer)
        dependencies = attrs.evolve(dependencies, **changes)
        server = ApiServer(dependencies, listeners, limits, Pulse())
        served = Served(server, dependencies, router, listeners[0].socket.getsockname()[1], stopped)
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(server.run)
                yield served
                nursery.cancel_scope.cancel()
        finally:
            for held in (*listeners, *served.streams):
                held.socket.close()

    return start


CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
