"""What the service manager hears from us: systemd's notification protocol, which is one datagram per message."""

import os
import socket
import time
from collections.abc import Mapping

import attrs

__all__ = ["ServiceManager"]


@attrs.frozen
class ServiceManager:
    """The service manager that started this process; without one, every message goes nowhere."""

    address: str | None = None  # a path, or @name in the abstract namespace
    watchdog_interval: float | None = None  # seconds within which it wants to hear `watchdog`; None: it does not

    @classmethod
    def from_environment(cls, env: Mapping[str, str]) -> "ServiceManager":
        """Read NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID; the watchdog may be meant for another process."""
        microseconds, pid = env.get("WATCHDOG_USEC", ""), env.get("WATCHDOG_PID", "")
        ours = microseconds.isdecimal() and int(microseconds) > 0 and pid in ("", str(os.getpid()))
        return cls(env.get("NOTIFY_SOCKET") or None, int(microseconds) / 1e6 if ours else None)

    def ready(self, status: str) -> None:
        """Say that start-up is finished."""
        self._send(f"READY=1\nSTATUS={status}")

    def status(self, status: str) -> None:
        """Say in one line what the node is doing."""
        self._send("STATUS=" + " ".join(status.split()))

    def watchdog(self) -> None:
        """Say that the node still works."""
        self._send("WATCHDOG=1")

    def restarting(self) -> None:
        """Say that the node will be ready again, in this process: for systemd that is a reload, and no end."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}\nWATCHDOG=1\nSTATUS=restarting")

    def stopping(self) -> None:
        """Say that the node has begun to stop."""
        self._send("STOPPING=1\nSTATUS=stopping")

    def _send(self, message: str) -> None:
        if self.address is None:
            return
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as line:
            line.setblocking(False)
            try:
                line.sendto(message.encode(), address)
            except OSError:  # a manager that is gone or does not read must not stop the node
                return
