"""The adapter: slow clients, half-open ones, keep-alive and draining. Real sockets; no assertion on a duration."""

import attrs
import msgspec
import trio
from support.api import CHAT, LIMITS, FakeRouter

from meshnode.api.serving import ServingLimits

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


async def test_a_client_that_never_reads_is_cut_off(serve):
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


async def test_draining_lets_a_stream_finish_and_takes_no_more(serve):
    async with serve(FakeRouter(words=["word "] * 40, pace=0.01)) as node:
        stream = await node.raw()
        await stream.send_all(post(node))
        data = await read_until(stream, b"word ")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.server.drain)
            with trio.fail_after(10):
                data += await read_until(stream, b"[DONE]")
        assert data.count(b"word ") == 40


async def test_draining_does_not_wait_for_idle_connections(serve):
    async with serve(limits=ServingLimits(5.0, 60.0, 50, 60.0)) as node:
        stream = await node.raw()
        await stream.send_all(node.head("GET", "/health"))
        await read_until(stream, b"ok")
        with trio.fail_after(20):
            await node.server.drain()


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


async def test_connections_beyond_the_limit_wait_their_turn(serve):
    limits = attrs.evolve(LIMITS, max_connections=2)
    async with serve(limits=limits) as node:
        first, second, third = [await node.raw() for _ in range(3)]
        await third.send_all(node.head("GET", "/health"))
        with trio.move_on_after(0.2) as waited:
            await third.receive_some(100)
        assert waited.cancelled_caught
        await first.aclose()
        with trio.fail_after(10):
            assert b"200" in await read_until(third, b"ok")
        await second.aclose()


async def test_quarts_own_timeout_does_not_cut_a_stream(serve):
    async with serve(FakeRouter(words=["word "] * 30, pace=0.01)) as node, node.client() as client:
        reply = await client.post("/v1/chat/completions", json=CHAT | {"stream": True})
        assert reply.text.count("word ") == 30
        assert reply.text.endswith("[DONE]\n\n")
