"""What every request passes before its handler: host and origin, protocol, key, rate.

A browser page from anywhere can send requests to localhost, and a name under an attacker's control can be made to resolve to
it; so a Host that is not ours, or an Origin that is not the Host, is refused before the key is looked at.
"""

import hmac
import ipaddress
import math
from urllib.parse import urlsplit

import attrs
from werkzeug.datastructures import Headers

from meshnode.api.failures import Failure, describe
from meshnode.flow.buckets import KeyedBuckets

__all__ = ["Guards"]

_FORWARDED = ("Forwarded", "Via", "X-Forwarded-For", "X-Real-Ip")


@attrs.frozen(eq=False)
class Guards:
    """Decides on the head of a request."""

    key: str = attrs.field(repr=False)
    hosts: frozenset[str]  # names we answer to besides loopback and plain addresses, lower case
    buckets: KeyedBuckets
    open_paths: frozenset[str]  # what needs no key

    def refusal(self, *, path: str, headers: Headers, client: str) -> Failure | None:
        """Return why the request is refused, or None. `client` is the address it came from."""
        foreign = self._foreign(headers.get("Host", ""), headers.get("Origin"))
        if foreign is not None:
            return describe(403, foreign)
        if headers.get("Upgrade", "").lower() == "websocket":
            return describe(
                403, "there are no WebSockets here; ask over HTTP, with 'stream': true for an answer as it comes"
            )
        known = self._has_key(headers.get("Authorization", ""), headers.get("x-api-key", ""))
        # Strangers at an address, such as a web page that loads /health as an image, do not use up what its user may do.
        wait = self.buckets.try_take(client if known else f"stranger at {client}")
        if wait is not None:
            return describe(429, f"too many requests from {client}; try again in {math.ceil(wait)} s", retry_after=wait)
        if known or path in self.open_paths or (path == "/metrics" and _is_local(client, headers)):
            return None
        return describe(
            401, "a key is needed: send 'Authorization: Bearer KEY' or 'x-api-key: KEY'; `meshnode token` prints it"
        )

    def _foreign(self, host: str, origin: str | None) -> str | None:
        name = _host_name(host)
        if not self._is_ours(name):
            return f"this node does not answer to the host name {name!r}; use its address, for example 127.0.0.1"
        if origin is not None and _authority(origin) != host.lower():
            return f"requests from pages of {origin[:200]!r} are refused"
        return None

    def _is_ours(self, name: str) -> bool:
        if name in self.hosts or name == "localhost" or name.endswith(".localhost"):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def _has_key(self, authorization: str, api_key: str) -> bool:
        """Whether the key is given, as a bearer's or as Anthropic's clients do."""
        scheme, _, given = authorization.partition(" ")
        is_bearer = hmac.compare_digest(given.strip().encode(), self.key.encode()) and scheme.lower() == "bearer"
        return hmac.compare_digest(api_key.strip().encode(), self.key.encode()) or is_bearer


def _host_name(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:  # brackets that are not an IPv6 address
        return ""


def _authority(origin: str) -> str | None:
    """Return host and port of a page's origin; None for `null` (a file, a sandboxed frame) and what is no origin."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return None
    return parts.netloc.lower() if parts.scheme in ("http", "https") else None


def _is_local(client: str, headers: Headers) -> bool:
    """Whether the client is this machine itself, not somebody behind a proxy that runs on it."""
    try:
        return ipaddress.ip_address(client).is_loopback and not any(name in headers for name in _FORWARDED)
    except ValueError:
        return False
