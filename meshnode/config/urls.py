"""Which addresses are good enough for what must not be tampered with or watched on its way."""

import ipaddress
from urllib.parse import urlsplit

__all__ = ["is_safe_url"]


def is_safe_url(url: str) -> bool:
    """Say whether `url` is https, or http to this machine itself by an address that nobody can make another one of."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
        _ = parts.port  # raises where it is no number
    except ValueError:
        return False
    if not host or parts.username is not None or not url.isascii() or not url.isprintable() or " " in url:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(host))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
