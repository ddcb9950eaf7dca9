"""Network namespaces: machines that reach only those they have a cable to. Needs root and `ip`."""

import ctypes
import os
import secrets
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

__all__ = ["Namespace", "cable", "namespaces", "why_not"]

_CLONE_NEWNET = 0x40000000


def _ip(*arguments):
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True)


def why_not():
    """Return why there can be no namespaces here, or nothing."""
    if shutil.which("ip") is None:
        return "there is no `ip` command: install iproute2"
    if os.geteuid() != 0:
        return f"network namespaces need root, and this is user {os.geteuid()}"
    name = f"mesh-{secrets.token_hex(4)}"
    try:
        _ip("netns", "add", name)
        _ip("netns", "del", name)
    except subprocess.CalledProcessError as error:
        return f"`{' '.join(error.cmd)}` was refused, which takes CAP_SYS_ADMIN: {error.stderr.strip()}"
    return ""


class Namespace:
    """One machine. What `run` calls, and every process it starts, sees this machine's network only."""

    def __init__(self, name):
        self.name = name
        self._thread = ThreadPoolExecutor(1, initializer=self._enter)

    def _enter(self):
        libc = ctypes.CDLL(None, use_errno=True)
        with (Path("/var/run/netns") / self.name).open() as file:
            if libc.setns(file.fileno(), _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns failed")

    def run(self, function, *arguments, **named):
        return self._thread.submit(function, *arguments, **named).result()

    def ip(self, *arguments):
        _ip("-n", self.name, *arguments)

    def forward(self, *, on):
        """Carry packets of others, as a router does, or drop them without a word."""
        value = "1" if on else "0"
        self.run(Path("/proc/sys/net/ipv4/ip_forward").write_text, value)

    def close(self):
        self._thread.shutdown()


@contextmanager
def namespaces(*names):
    """Yield a namespace for each name, with its loopback up; all are gone afterwards."""
    with ExitStack() as stack:
        made = []
        for name in names:
            whole = f"mesh-{name}-{secrets.token_hex(3)}"
            _ip("netns", "add", whole)
            stack.callback(_ip, "netns", "del", whole)
            made.append(Namespace(whole))
            stack.callback(made[-1].close)
            made[-1].ip("link", "set", "lo", "up")
        yield made


def cable(near, near_address, far, far_address):
    """Connect two namespaces; the addresses are like 10.0.0.1/24."""
    ends = [f"v{secrets.token_hex(4)}" for _ in range(2)]
    _ip("link", "add", ends[0], "netns", near.name, "type", "veth", "peer", "name", ends[1], "netns", far.name)
    for side, end, address in ((near, ends[0], near_address), (far, ends[1], far_address)):
        side.ip("addr", "add", address, "dev", end)
        side.ip("link", "set", end, "up")
