"""A host of its own on this machine, behind a wire of so many bits per second each way. Needs Linux, root, and the `ip` and `tc` commands."""

import itertools
import os
import shutil
import subprocess
from contextlib import suppress

HERE, THERE = "10.214.0.1", "10.214.0.2"


class ShapedLink:
    """Exists within its context. Entering raises OSError or CalledProcessError where it cannot be made."""

    def __init__(self, rate: float) -> None:
        """`rate`: bits per second, headers included."""
        self._rate = rate
        mark = f"bench{os.getpid() % 100000}{next(_number)}"
        self._space, self._near, self._far = (f"{mark}{name}" for name in ("s", "n", "f"))

    def __enter__(self) -> "ShapedLink":
        if not (shutil.which("ip") and shutil.which("tc")):
            raise OSError("there is no ip or no tc command")
        try:
            _run("ip", "netns", "add", self._space)
            _run("ip", "link", "add", self._near, "type", "veth", "peer", "name", self._far, "netns", self._space)
            for where, device, address in (((), self._near, HERE), (("-n", self._space), self._far, THERE)):
                _run("tc", *where, "qdisc", "add", "dev", device, *_shape(self._rate))
                _run("ip", *where, "address", "add", f"{address}/24", "dev", device)
                _run("ip", *where, "link", "set", device, "up")
            _run("ip", "-n", self._space, "link", "set", "lo", "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(subprocess.CalledProcessError):
            _run("ip", "netns", "del", self._space)  # the wire ends with it

    def inside(self) -> list[str]:
        """Return what a command begins with that is to run over there."""
        return ["ip", "netns", "exec", self._space]


_number = itertools.count()  # two links of one process have devices of their own


def _shape(rate: float) -> tuple[str, ...]:
    burst = max(16_000, round(rate / 4000))  # bytes, 2 ms worth
    return ("root", "tbf", "rate", f"{rate:.0f}", "burst", str(burst), "latency", "20ms")


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
