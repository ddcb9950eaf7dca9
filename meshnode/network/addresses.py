"""The multiaddrs that nodes are reached at: direct over TCP, or through a node that relays.

/ip4/192.0.2.7/tcp/8090/p2p/12D3Koo…                       direct; also /ip6, /dns, /dns4 and /dns6
/ip4/192.0.2.7/tcp/8090/p2p/RELAY/p2p-circuit/p2p/PEER     through RELAY
"""

import contextlib
import ipaddress
from collections.abc import Iterable
from functools import lru_cache

import attrs
import psutil

from meshnode.crypto.signing import parse_peer_id
from meshnode.types.ids import PeerId

__all__ = ["Address", "chosen", "direct_only", "is_local", "is_neighbour", "local_hosts", "parse_address"]

_CIRCUIT = "/p2p-circuit"
_MAX_LENGTH = 512  # characters
_HOST_KINDS = ("ip4", "ip6", "dns", "dns4", "dns6")
_WHOLE = {4: "255.255.255.255", 6: "ffff" + ":ffff" * 7}  # netmask of an interface that says none
_LOCAL = tuple(map(ipaddress.ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")))


@attrs.frozen
class Address:
    """Where a node is reached."""

    host: str  # an IP address, or a name
    port: int
    peer: PeerId  # the node at its end
    relay: PeerId | None = None  # the node at `host`, where that is not `peer`

    @property
    def is_direct(self) -> bool:
        """Whether no other node stands in between."""
        return self.relay is None

    def __str__(self) -> str:
        try:
            kind = f"ip{ipaddress.ip_address(self.host).version}"
        except ValueError:
            kind = "dns"
        base = f"/{kind}/{self.host}/tcp/{self.port}/p2p/{self.relay or self.peer}"
        return base if self.is_direct else f"{base}{_CIRCUIT}/p2p/{self.peer}"


@lru_cache(4096)  # each answer of the hash table names the same twenty nodes again
def parse_address(text: str) -> Address:
    """Read a multiaddr. Raises ValueError that says what is wrong with it."""
    if len(text) > _MAX_LENGTH:
        raise ValueError(f"an address of {len(text)} characters is refused")
    direct, circuit, relayed = text.partition(_CIRCUIT)
    match direct.split("/"):
        case ["", kind, host, "tcp", port, "p2p", peer] if kind in _HOST_KINDS and host:
            pass
        case _:
            raise ValueError(f"{text!r} is not an address like /ip4/192.0.2.7/tcp/8090/p2p/12D3Koo…")
    if kind in ("ip4", "ip6"):
        ip = ipaddress.ip_address(host)
        if ip.version != int(kind[2]):
            raise ValueError(f"{host} in {text!r} is not an IPv{kind[2]} address")
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16):
        raise ValueError(f"{port!r} in {text!r} is not a port")
    parse_peer_id(peer)
    if not circuit:
        return Address(host, int(port), PeerId(peer))
    prefix, _, target = relayed.rpartition("/")
    if prefix != "/p2p":
        raise ValueError(f"{text!r} does not say whom the relay is to reach")
    parse_peer_id(target)
    return Address(host, int(port), PeerId(target), PeerId(peer))


def direct_only(addresses: Iterable[str]) -> tuple[str, ...]:
    """Return those multiaddrs that lead through no other node."""
    return tuple(address for address in addresses if _CIRCUIT not in address)


def chosen(addresses: Iterable[str], limit: int) -> tuple[str, ...]:
    """Return the first `limit` multiaddrs; a machine with many interfaces must not crowd out the way through a relay.

    Direct ones come first, and a third of the places is kept for relayed ones.
    """
    every = tuple(dict.fromkeys(addresses))
    direct = direct_only(every)
    relayed = tuple(address for address in every if _CIRCUIT in address)
    kept = min(len(relayed), max(limit // 3, limit - len(direct)))
    return (*direct[: limit - kept], *relayed[:kept])


def is_neighbour(host: str) -> bool:
    """Whether an IP address is of this machine, or of a local network that it has an interface in.

    A private address alone says little: behind it may be a branch office, a virtual network, or a whole campus.
    """
    ip = _plain(host)
    if not is_local(host):
        return False
    return ip.is_loopback or ip.is_link_local or any(ip in network for network in _own_networks())


def is_local(host: str) -> bool:
    """Whether an IP address is one of a local network (RFC 1918, RFC 4193, link-local), or of this machine."""
    ip = _plain(host)
    return ip.is_loopback or ip.is_link_local or any(ip in network for network in _LOCAL)


def local_hosts(bound: str) -> tuple[str, ...]:
    """Return the addresses of this machine that a socket bound to `bound` is reached at, without loopback unless it is all."""
    ip = ipaddress.ip_address(bound)
    if not ip.is_unspecified:
        return (bound,)
    found = [
        address.address
        for name, addresses in psutil.net_if_addrs().items()
        if psutil.net_if_stats().get(name) is None or psutil.net_if_stats()[name].isup
        for address in addresses
        if _usable(address.address, ip.version)
    ]
    reachable = [host for host in found if not ipaddress.ip_address(host).is_loopback]
    return tuple(reachable or found)


def _plain(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    ip = ipaddress.ip_address(host)
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        return ip.ipv4_mapped  # as IPv4 looks to a socket that takes both
    return ip


def _own_networks() -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    """Return the networks of our interfaces."""
    found = []
    for address in (each for addresses in psutil.net_if_addrs().values() for each in addresses):
        with contextlib.suppress(ValueError):  # a hardware address, or one with a zone
            ip = ipaddress.ip_address(address.address)
            mask = ipaddress.ip_address(address.netmask or _WHOLE[ip.version])
            found.append(ipaddress.ip_network((ip, int(mask).bit_count()), strict=False))
    return found


def _usable(text: str, version: int) -> bool:
    try:
        ip = ipaddress.ip_address(text)  # a hardware address, or one with a zone, is none
    except ValueError:
        return False
    return ip.version == version and not ip.is_link_local and "%" not in text
