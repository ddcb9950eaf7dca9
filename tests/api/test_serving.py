"""The adapter: slow clients, half-open ones, keep-alive and draining. Real sockets; no assertion on a duration."""

import errno
import socket
import struct

import attrs
import httpx
import msgspec
import pytest
import structlog
import trio
import trio.testing
from support.api import CHAT, KEY, LIMITS, FakeRouter

from meshnode.api.application import create_app
from meshnode.api.mcp.mount import McpSurface
from meshnode.api.responses.service import Responses
from meshnode.api.serving import ServingLimits
from meshnode.errors import SessionLost

BODY = msgspec.json.encode(CHAT | {"stream": True})


def post(node):
    extra = f"Content-Type: application/json\r\nContent-Length: {len(BODY)}\r\n"
    return node.head("POST", "/v1/chat/completions", extra) + BODY


async def read_until(stream, mark):
    data = b""
    while mark not in data:
        piece = await stream.receive_some(65536)
        if not piece:
            break
        data += bytes(piece)
    return data


async def test_a_client_that_leaves_cancels_its_answer(serve):
    async with serve(FakeRouter(words=["word "] * 10_000, pace=0.01)) as node:
        stream = await node.raw()
        await stream.send_all(post(node))
        await read_until(stream, b"word ")
        assert node.router.running == 1
        await stream.aclose()
        with trio.fail_after(10):
            await node.router.ended.wait()


async def test_a_client_that_half_closes_counts_as_gone(serve):
    async with serve(FakeRouter(words=["word "] * 10_000, pace=0.01)) as node:
        stream = await node.raw()
        await stream.send_all(post(node))
        await read_until(stream, b"word ")
        await stream.send_eof()
        with trio.fail_after(10):
            await node.router.ended.wait()


@pytest.mark.parametrize("kernel_helps", [True, False])
async def test_a_client_that_never_reads_is_cut_off(serve, monkeypatch, kernel_helps):
    if not kernel_helps:
        monkeypatch.delattr(socket, "TCP_USER_TIMEOUT", raising=False)
    limits = attrs.evolve(LIMITS, write_timeout=0.5)
    async with serve(FakeRouter(words=["x" * 100_000] * 2000), limits) as node:
        stream = await node.raw()
        await stream.send_all(post(node))
        with trio.fail_after(30):
            await node.router.ended.wait()


async def test_an_idle_connection_is_closed_after_a_request(serve):
    limits = attrs.evolve(LIMITS, keep_alive_timeout=0.3)
    async with serve(limits=limits) as node:
        stream = await node.raw()
        await stream.send_all(node.head("GET", "/health"))
        assert b"200" in await read_until(stream, b"ok")
        with trio.fail_after(10):
            assert await stream.receive_some(100) == b""


async def test_a_connection_serves_many_requests(serve):
    async with serve() as node:
        stream = await node.raw()
        for _ in range(5):
            await stream.send_all(node.head("GET", "/health"))
            assert b"200" in await read_until(stream, b"ok")


async def test_who_says_half_of_something_gives_way_to_who_asks(serve):
    limits = attrs.evolve(LIMITS, max_connections=20)
    async with serve(limits=limits) as node:
        strangers = [await node.raw() for _ in range(60)]
        for stranger in strangers:
            await stranger.send_all(b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Half: ")
        with trio.fail_after(10):
            async with node.client() as http:
                assert (await http.get("/health")).status_code == 200


async def test_draining_lets_a_stream_finish_and_takes_no_more(serve):
    async with serve(FakeRouter(words=["word "] * 40, pace=0.01)) as node, node.client() as client:
        stream = await node.raw()
        await stream.send_all(post(node))
        data = await read_until(stream, b"word ")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.server.drain)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(httpx.ConnectError):  # at once, and not left waiting for the end
                await client.get("/health")
            with trio.fail_after(10):
                data += await read_until(stream, b"[DONE]")
        assert data.count(b"word ") == 40


async def test_a_connection_that_drains_is_not_kept_alive(serve):
    async with serve(FakeRouter(words=["word "] * 40, pace=0.01)) as node:
        stream = await node.raw()
        await stream.send_all(post(node))
        await read_until(stream, b"word ")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.server.drain)
            with trio.fail_after(10):
                await read_until(stream, b"[DONE]")
                await read_until(stream, b"nothing: until the end")


async def test_draining_does_not_wait_for_idle_connections(serve):
    async with serve(limits=ServingLimits(5.0, 60.0, 50, 60.0)) as node:
        stream = await node.raw()
        await stream.send_all(node.head("GET", "/health"))
        await read_until(stream, b"ok")
        with trio.fail_after(20):
            await node.server.drain()


async def test_who_outlives_the_drain_is_told_before_the_connection_ends(serve):
    limits = attrs.evolve(LIMITS, graceful_timeout=2.0)
    async with serve(FakeRouter(words=["word "] * 10_000, pace=0.01), limits) as node, node.client() as http:
        stream = await node.raw()
        await stream.send_all(post(node))
        await read_until(stream, b"word ")
        whole = []

        async def ask():
            whole.append(await http.post("/v1/chat/completions", json=CHAT))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.sleep(0.1)
            nursery.start_soon(node.server.drain)
            with trio.fail_after(10):
                told = await read_until(stream, b"nothing: until the end")
        assert b'"code":"unavailable"' in told
        assert b"[DONE]" not in told
        assert (whole[0].status_code, whole[0].json()["error"]["code"]) == (503, "unavailable")
        assert node.router.running == 0


async def test_draining_ends_what_takes_too_long(serve):
    limits = attrs.evolve(LIMITS, graceful_timeout=0.3)
    async with serve(FakeRouter(words=["word "] * 10_000, pace=0.01), limits) as node:
        stream = await node.raw()
        await stream.send_all(post(node))
        await read_until(stream, b"word ")
        with trio.fail_after(10):
            await node.server.drain()
        assert node.router.running == 0


async def test_garbage_harms_nobody(serve):
    async with serve() as node, node.client() as client:
        for garbage in (
            b"\x00\xff" * 500,
            b"GET / HTTP/9.9\r\n\r\n",
            b"GET /health HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 200_000,
        ):
            stream = await node.raw()
            await stream.send_all(garbage)
            with trio.move_on_after(1):
                await stream.receive_some(100)
            await stream.aclose()
        assert (await client.get("/health")).status_code == 200


async def test_connections_beyond_the_limit_wait_until_one_of_those_that_are_served_ends(serve):
    limits = attrs.evolve(LIMITS, max_connections=2)
    router = FakeRouter(queue=trio.Event())
    async with serve(router, limits=limits) as node:
        first, second = await node.raw(), await node.raw()
        for busy in (first, second):
            await busy.send_all(post(node))
        with trio.fail_after(10):
            while router.running < 2:  # noqa: ASYNC110  # nobody is told
                await trio.sleep(0.01)
        third = await node.raw()
        await third.send_all(node.head("GET", "/health"))
        with trio.move_on_after(0.2) as waited:
            await third.receive_some(100)
        assert waited.cancelled_caught
        await first.aclose()
        with trio.fail_after(10):
            assert b"200" in await read_until(third, b"ok")
        await second.aclose()


async def test_quarts_own_timeout_does_not_cut_a_stream(serve, monkeypatch):
    """Quart ends a response after 60 s as if it were complete; every stream has to opt out by itself."""

    def create_with_a_short_timeout(*parts):
        app = create_app(*parts)
        app.config["RESPONSE_TIMEOUT"] = 0.05
        return app

    monkeypatch.setattr("meshnode.api.server.create_app", create_with_a_short_timeout)
    async with serve(FakeRouter(words=["word "] * 30, pace=0.01)) as node, node.client() as client:
        reply = await client.post("/v1/chat/completions", json=CHAT | {"stream": True})
        assert reply.text.count("word ") == 30
        assert reply.text.endswith("[DONE]\n\n")


async def test_a_client_that_leaves_the_queue_ends_its_generation(serve):
    for stream_wanted in (True, False):
        async with serve(FakeRouter(queue=trio.Event())) as node:
            stream = await node.raw()
            body = msgspec.json.encode(CHAT | {"stream": stream_wanted})
            extra = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            await stream.send_all(node.head("POST", "/v1/chat/completions", extra) + body)
            with trio.fail_after(10):
                await node.router.begun.wait()
                await stream.aclose()
                await node.router.ended.wait()


async def test_an_answer_is_freed_when_the_head_of_its_stream_cannot_be_sent(serve):
    """A generator that nobody started is not closed either, so the body cannot be the one that frees."""
    sent = []

    async def receive():
        if sent:
            await trio.sleep_forever()
        sent.append(True)
        return {"type": "http.request", "body": BODY, "more_body": False}

    async def send(_message):
        raise OSError("the client is gone")

    async with serve() as node:
        names = {"host": "127.0.0.1", "authorization": f"Bearer {KEY}", "content-type": "application/json"}
        scope = {
            "type": "http", "http_version": "1.1", "method": "POST", "scheme": "http", "path": "/v1/chat/completions", "query_string": b"",
            "headers": [(name.encode(), value.encode()) for name, value in names.items()], "client": ("127.0.0.1", 1), "extensions": {},
        }  # fmt: skip
        with pytest.RaisesGroup(OSError, flatten_subgroups=True):
            await create_app(node.dependencies, McpSurface(node.dependencies), Responses(node.dependencies))(
                scope, receive, send
            )
        assert len(node.router.requests) == 1
        assert node.router.running == 0


async def test_silence_in_the_queue_is_filled_and_its_end_is_an_answer_or_an_error_event(serve):
    for error in (None, SessionLost("the worker is gone")):
        router = FakeRouter(queue=trio.Event(), error=error)
        async with serve(router, heartbeat=0.05) as node:
            stream = await node.raw()
            await stream.send_all(post(node))
            with trio.fail_after(10):
                data = await read_until(stream, b": waiting")
                assert data.startswith(b"HTTP/1.1 200")
                router.queue.set()
                data += await read_until(stream, b"0\r\n\r\n")
            assert (b"[DONE]" in data) == (error is None)
            assert (b"session_lost" in data) == (error is not None)


async def test_a_request_head_that_never_ends_does_not_hold_a_connection(serve):
    limits = attrs.evolve(LIMITS, keep_alive_timeout=0.3)
    async with serve(limits=limits) as node:
        stream = await node.raw()
        await stream.send_all(b"GET /health HTTP/1.1\r\nHost: 127")
        with trio.fail_after(10):
            assert await stream.receive_some(100) == b""


async def test_running_out_of_descriptors_is_not_the_end(serve, monkeypatch):
    accept, failures = trio.SocketListener.accept, [errno.EMFILE, errno.ENFILE, errno.ENOMEM]

    async def failing(listener):
        if failures:
            raise OSError(failures.pop(), "none left")
        return await accept(listener)

    monkeypatch.setattr(trio.SocketListener, "accept", failing)
    async with serve() as node, node.client() as client:
        with trio.fail_after(10):
            assert (await client.get("/health")).status_code == 200
    assert not failures


async def test_an_offer_of_http2_is_answered_in_http1(serve):
    """Its windows, kept shut by the client, would stall an answer where no deadline on writes can reach it."""
    async with serve() as node:
        stream = await node.raw()
        offer = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
        await stream.send_all(node.head("GET", "/health", offer))
        with trio.fail_after(10):
            assert (await read_until(stream, b"ok")).startswith(b"HTTP/1.1 200")
        stream = await node.raw()
        await stream.send_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
        with trio.fail_after(10):
            assert (await read_until(stream, b"\r\n")).startswith(b"HTTP/1.1 4")


async def refusal(stream):
    """Return status and error of an answer, of which all that it says of itself is true."""
    with trio.fail_after(10):
        head, _, body = (await read_until(stream, b"}}")).partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    said = dict(line.lower().split(": ", 1) for line in lines)
    assert (said["content-type"], int(said["content-length"])) == ("application/json", len(body))
    assert said["x-request-id"]
    return status.split()[1], msgspec.json.decode(body)["error"]


@pytest.mark.parametrize("shakes_hands", [True, False])
async def test_a_websocket_is_refused_before_it_opens(serve, shakes_hands):
    async with serve() as node, node.client() as client:
        stream = await node.raw()
        wish = "Connection: Upgrade\r\nUpgrade: websocket\r\n"
        if shakes_hands:
            wish += "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
        await stream.send_all(node.head("GET", "/v1/models", wish))
        status, error = await refusal(stream)
        assert (status, error["code"]) == ("403", "forbidden")
        assert "no WebSockets here" in error["message"]
        assert (await client.get("/health")).status_code == 200


MALFORMED = [
    (b"GET /health HTTP/1.1\r\n\r\n", "400", "bad_request", "Missing mandatory Host"),
    (b"POST /mcp HTTP/1.1\r\nHost: a\r\nContent-Length: many\r\n\r\n", "400", "bad_request", "bad Content-Length"),
    (b"hello\r\n\r\n", "400", "bad_request", "illegal request line"),
    (b"GET / HTTP/1.1\r\nHost: a\r\nsesame\r\n\r\n", "400", "bad_request", "illegal header line"),
    (b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", "501", "not_implemented", "Transfer-Encoding"),
    (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 65_509, "431", "head_too_large", "more than 65536 bytes"),
]


async def test_a_malformed_request_is_told_what_is_wrong_with_it(serve):
    with structlog.testing.capture_logs() as logs:
        async with serve() as node:
            for raw, status, code, words in MALFORMED:
                stream = await node.raw()
                await stream.send_all(raw)
                said, error = await refusal(stream)
                assert (said, error["code"]) == (status, code)
                assert words in error["message"]
                with trio.fail_after(10):
                    assert await stream.receive_some(100) == b""
    lines = [line for line in logs if line["log_level"] == "info"]
    assert [(str(line["status"]), line["error"], line["client"]) for line in lines] == [
        (status, code, "127.0.0.1") for _, status, code, _ in MALFORMED
    ]
    assert "sesame" not in repr(logs)


@pytest.mark.parametrize(
    "target", ["?x", "http://[", "*", "http://127.0.0.1", "//", "/%00", "/%ff", "/" + "a" * 60_000]
)
async def test_no_target_is_an_error_of_ours(serve, target):
    async with serve() as node:
        stream = await node.raw()
        await stream.send_all(node.head("GET", target))
        with trio.fail_after(10):
            reply = await read_until(stream, b"\r\n")
        assert reply[9:12] in (b"200", b"404", b"400", b"431")


async def test_nothing_breaks_when_many_clients_vanish_at_all_moments(serve):
    async with serve(FakeRouter(words=["word "] * 100, pace=0.001)) as node, node.client() as client:

        async def visit(number):
            stream = await node.raw()
            await stream.send_all(post(node)[: 40 + 20 * number])
            with trio.move_on_after(0.005 * (number % 7)):
                await stream.receive_some(number + 1)
            if number % 2:  # an abrupt end: unread data makes the system send a reset
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await stream.aclose()

        async with trio.open_nursery() as nursery:
            for number in range(40):
                nursery.start_soon(visit, number)
        with trio.fail_after(10):
            assert (await client.get("/health")).status_code == 200
            if node.router.running:
                await node.router.ended.wait()
