"""The sockets are bound once, outlive their servers, and say in one line why they cannot be."""

import errno

import pytest
import trio

from meshnode.errors import ConfigError
from meshnode.node.listeners import bind, bound_port

pytestmark = pytest.mark.processes


async def test_port_zero_is_any_free_port():
    async with bind("127.0.0.1", 0) as listeners:
        assert bound_port(listeners) > 0


async def test_a_client_that_comes_between_two_servers_is_served_by_the_second():
    async with bind("127.0.0.1", 0) as listeners:
        with trio.move_on_after(0):
            await listeners[0].accept()
        async with await trio.open_tcp_stream("127.0.0.1", bound_port(listeners)) as client:
            async with await listeners[0].accept() as stream:
                await stream.send_all(b"hello")
            assert await client.receive_some(10) == b"hello"


async def test_a_port_in_use_is_one_line():
    async with bind("127.0.0.1", 0) as listeners:
        with pytest.raises(
            ConfigError, match=f"^port {bound_port(listeners)} on 127.0.0.1 is in use by another program"
        ):
            await bind("127.0.0.1", bound_port(listeners)).__aenter__()


async def test_an_address_of_another_machine_is_one_line():
    with pytest.raises(ConfigError, match=r"^192\.0\.2\.1 is not an address of this machine"):
        await bind("192.0.2.1", 0).__aenter__()


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(errno.EACCES, "denied"), "needs more rights"),
        (OSError(errno.EMFILE, "Too many open files"), "cannot listen on box port 80: Too many open files"),
        (ExceptionGroup("none bound", [OSError(errno.EIO, "x")]), "cannot listen on box port 80: none bound"),
    ],
)
async def test_other_refusals_are_one_line(monkeypatch, error, text):
    async def refuse(*_args, **_kwargs):
        raise error

    monkeypatch.setattr(trio, "open_tcp_listeners", refuse)
    with pytest.raises(ConfigError, match=text):
        await bind("box", 80).__aenter__()
