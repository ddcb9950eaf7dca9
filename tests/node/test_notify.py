"""Messages arrive as systemd wants them, and a manager that is not there is no trouble."""

import os
import re
import socket

import pytest

from meshnode.node.notify import ServiceManager


@pytest.fixture(params=["path", "abstract"])
def manager_socket(request, tmp_path):
    name = str(tmp_path / "notify") if request.param == "path" else f"@meshnode-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
        line.bind("\0" + name[1:] if name.startswith("@") else name)
        line.settimeout(5)
        yield name, line


def test_each_message_is_one_datagram(manager_socket):
    name, line = manager_socket
    manager = ServiceManager.from_environment({"NOTIFY_SOCKET": name})
    manager.ready("serving")
    manager.status("two\nlines")
    manager.watchdog()
    manager.stopping()
    manager.restarting()
    assert [line.recv(1000) for _ in range(4)] == [
        b"READY=1\nSTATUS=serving",
        b"STATUS=two lines",
        b"WATCHDOG=1",
        b"STOPPING=1\nSTATUS=stopping",
    ]
    assert re.fullmatch(rb"RELOADING=1\nMONOTONIC_USEC=\d+\nWATCHDOG=1\nSTATUS=restarting", line.recv(1000))


@pytest.mark.parametrize("address", [None, "/nowhere/notify", "@meshnode-nobody"])
def test_without_a_manager_nothing_happens(address):
    ServiceManager(address).watchdog()


def test_a_manager_that_does_not_read_never_blocks(manager_socket):
    name, _ = manager_socket
    manager = ServiceManager(name)
    for _ in range(2000):
        manager.watchdog()


@pytest.mark.parametrize(
    ("env", "interval"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"NOTIFY_SOCKET": ""}, None),
    ],
)
def test_the_watchdog_interval_comes_from_the_environment(env, interval):
    manager = ServiceManager.from_environment(env)
    assert manager.watchdog_interval == interval
    assert manager.address is None
