"""Hosts of their own on this machine, and a wire between them that takes its time. Needs Linux, root and the `ip` command.

Each host is a network namespace with a TUN device, whose packets come to this process; it hands them on when they are due.
A kernel with netem could do the same; many have none.
"""

import fcntl
import heapq
import os
import select
import shutil
import struct
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

_TUNSETIFF, _TUN_WITHOUT_INFO = 0x400454CA, 0x1001
_PACKET = 65536
OUTSIDE = "10.213.0.1"  # this process's own address, at no distance from anybody


def is_possible() -> bool:
    """Whether this process may make namespaces and devices."""
    return os.name == "posix" and os.geteuid() == 0 and Path("/dev/net/tun").exists() and bool(shutil.which("ip"))


class SlowNetwork:
    """Exists within its context; `delay` may be changed at any time."""

    def __init__(self, names: Sequence[str]) -> None:
        self.delay = 0.0  # seconds one way, between any two hosts
        self.addresses = {name: f"10.213.0.{2 + index}" for index, name in enumerate(names)}
        self.nbytes: Counter[tuple[str, str]] = Counter()  # IP bytes by (from, to), as addresses
        self._spaces = {name: f"bench-{os.getpid()}-{name}" for name in names}
        self._devices: dict[str, int] = {}  # file descriptors by address
        self._stopping, self._stop = os.pipe()
        self._thread = threading.Thread(target=self._carry, name="slow network", daemon=True)

    def __enter__(self) -> "SlowNetwork":
        self._add_device(OUTSIDE, None)
        for name, space in self._spaces.items():
            _ip("netns", "add", space)
            _ip("-n", space, "link", "set", "lo", "up")
            self._add_device(self.addresses[name], space)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.write(self._stop, b"x")
        self._thread.join()
        for descriptor in (*self._devices.values(), self._stop, self._stopping):
            os.close(descriptor)
        for space in self._spaces.values():
            _ip("netns", "del", space)

    def inside(self, name: str) -> list[str]:
        """Return what a command begins with that is to run on a host."""
        return ["ip", "netns", "exec", self._spaces[name]]

    def between(self, one: str, other: str) -> tuple[int, int]:
        """Return the bytes that went from one host to another so far, and back: whole IP packets."""
        here, there = self.addresses[one], self.addresses[other]
        return self.nbytes[here, there], self.nbytes[there, here]

    def _add_device(self, address: str, space: str | None) -> None:
        device = f"bt{os.getpid() % 100000}n{len(self._devices)}"
        descriptor = self._devices[address] = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH14x", device.encode(), _TUN_WITHOUT_INFO))
        where: tuple[str, ...] = ()
        if space is not None:
            _ip("link", "set", device, "netns", space)
            where = ("-n", space)
        _ip(*where, "address", "add", f"{address}/24", "dev", device)
        _ip(*where, "link", "set", device, "up")

    def _carry(self) -> None:
        names = {descriptor: address for address, descriptor in self._devices.items()}
        due: list[tuple[float, int, str, bytes]] = []
        number = 0
        while True:
            wait = None if not due else max(0.0, due[0][0] - time.monotonic())
            ready, _, _ = select.select([*names, self._stopping], [], [], wait)
            if self._stopping in ready:
                return
            for descriptor in ready:
                packet = os.read(descriptor, _PACKET)
                if packet[0] >> 4 != 4:
                    continue
                target = ".".join(map(str, packet[16:20]))
                if target in self._devices:
                    source = names[descriptor]
                    self.nbytes[source, target] += len(packet)
                    delay = 0.0 if OUTSIDE in (source, target) else self.delay
                    number += 1
                    heapq.heappush(due, (time.monotonic() + delay, number, target, packet))
            while due and due[0][0] <= time.monotonic():
                _, _, target, packet = heapq.heappop(due)
                os.write(self._devices[target], packet)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)
