"""What every request passes before its handler: host and origin, key, rate.

A browser page from anywhere can send requests to localhost, and a name under an attacker's control can be made to resolve to
it; so a Host that is not ours, or an Origin that is not the Host, is refused before the key is looked at.
"""

import hmac
import ipaddress
from urllib.parse import urlsplit

import attrs

from meshnode.api.failures import Failure, describe
from meshnode.flow.buckets import KeyedBuckets

__all__ = ["Guards"]

_OPEN = frozenset({"/", "/health", "/health/ready"})


@attrs.frozen(eq=False)
class Guards:
    """Decides on the head of a request."""

    key: str
    hosts: frozenset[str]  # names we answer to besides loopback and plain addresses, lower case
    buckets: KeyedBuckets

    def refusal(
        self, *, path: str, host: str, origin: str | None, authorization: str | None, client: str
    ) -> Failure | None:
        """Return why the request is refused, or None."""
        name = _host_name(host)
        if not self._is_ours(name):
            return describe(
                403, f"this node does not answer to the host name {name!r}; use 127.0.0.1 or add it to api.host"
            )
        if origin is not None and origin != "null" and urlsplit(origin).netloc.lower() != host.lower():
            return describe(403, f"requests from pages of {origin} are refused")
        if path not in _OPEN and not (path == "/metrics" and _is_loopback(client)):
            given = (authorization or "").removeprefix("Bearer ").strip()
            if not hmac.compare_digest(given.encode(), self.key.encode()):
                return describe(401, "a key is needed: send 'Authorization: Bearer KEY'; `meshnode token` prints it")
        wait = self.buckets.try_take(client)
        if wait is not None:
            return describe(429, f"too many requests from {client}; try again in {wait:.1f} s", retry_after=wait)
        return None

    def _is_ours(self, name: str) -> bool:
        if name in self.hosts or name == "localhost" or name.endswith(".localhost"):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def _host_name(host: str) -> str:
    name = urlsplit(f"//{host}").hostname
    return (name or "").lower()


def _is_loopback(client: str) -> bool:
    try:
        return ipaddress.ip_address(client).is_loopback
    except ValueError:
        return False
