"""The faults that `meshnode.api.serving` works around, as they are upstream. One that fails here is cured: drop the cure."""

import attrs
import pytest
import trio
from hypercorn.events import RawData
from hypercorn.protocol.h11 import H2ProtocolAssumedError, H11Protocol
from hypercorn.trio.tcp_server import TCPServer
from quart_trio.asgi import TrioASGIHTTPConnection
from support.api import LIMITS

from meshnode.api.application import create_app


async def test_hypercorns_send_has_no_deadline_and_cannot_be_cancelled(autojump_clock):
    class Reluctant:
        async def send_all(self, data):
            await trio.sleep(10_000)

    connection = TCPServer(None, None, None, {}, Reluctant())
    began = trio.current_time()
    with trio.move_on_after(1):
        await connection.protocol_send(RawData(b"x"))
    assert trio.current_time() - began == 10_000


async def test_under_quart_trio_an_idle_connection_is_never_closed(serve, monkeypatch):
    def create_stock(*parts):
        app = create_app(*parts)
        app.asgi_http_class = StockConnection
        return app

    class StockConnection(TrioASGIHTTPConnection):
        pass

    monkeypatch.setattr("meshnode.api.server.create_app", create_stock)
    async with serve(limits=attrs.evolve(LIMITS, keep_alive_timeout=0.1)) as node:
        stream = await node.raw()
        await stream.send_all(node.head("GET", "/health"))
        while not (await stream.receive_some(65536)).endswith(b'"ok"}'):
            pass
        with trio.move_on_after(1) as waited:
            await stream.receive_some(65536)
        assert waited.cancelled_caught


async def test_hypercorn_speaks_http2_to_whoever_asks():
    class Preface:
        method, target, http_version, headers = b"PRI", b"*", b"2.0", ()

    class Connection:
        trailing_data = (b"", False)

    class Protocol:
        connection = Connection()

    with pytest.raises(H2ProtocolAssumedError):
        await H11Protocol._check_protocol(Protocol(), Preface())
