"""Finds nodes on the local network by multicast DNS, with zeroconf, which runs in threads of its own.

A node registers `PEER._meshnode._tcp.local.` with its addresses and a name of its network that does not give away the id. What
others register is a hint like any other address: whoever answers there proves who it is, and that it belongs to the network.
"""

import contextlib
import ipaddress
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import attrs
import structlog
import trio
from blake3 import blake3
from zeroconf import Error as ZeroconfError
from zeroconf import IPVersion, ServiceBrowser, ServiceInfo, ServiceStateChange, Zeroconf

from meshnode.crypto.signing import parse_peer_id
from meshnode.flow.latest import Latest
from meshnode.network.addresses import Address, direct_only, parse_address
from meshnode.types.ids import PeerId, short

__all__ = ["LocalDiscovery"]

_TYPE = "_meshnode._tcp.local."
_QUERY = 3000  # milliseconds for the details of one node
_MAX_ADDRESSES = 8
_FAREWELL = 3.0  # seconds to say goodbye

_log = structlog.get_logger(__name__)

Found = Callable[[PeerId, Sequence[str]], None]


@attrs.frozen(eq=False)
class LocalDiscovery:
    """What one node says and hears on the local network."""

    own: PeerId
    network_id: str

    async def run(self, listening: Latest[tuple[str, ...]], found: Found) -> None:
        """Be found where we listen, and tell what is found, until cancelled; without multicast it is logged and that is all."""
        try:
            while True:
                seen, ours = listening.version, _places(listening.value)
                async with trio.open_nursery() as nursery:
                    if ours:
                        nursery.start_soon(self._speak, ours, found)
                    while _places(listening.value) == ours:
                        seen = await listening.changed(seen)
                    nursery.cancel_scope.cancel()
        except* (OSError, ZeroconfError) as group:
            _log.warning("no nodes are looked for on the local network", why=str(group.exceptions[0]))

    async def _speak(self, places: Sequence[Address], found: Found) -> None:
        hosts = list(dict.fromkeys(place.host for place in places))
        token = trio.lowlevel.current_trio_token()
        hear = partial(_hear, self._network, self.own, partial(_hand_over, token, found))
        service = ServiceInfo(
            _TYPE,
            f"{self.own}.{_TYPE}",
            port=places[0].port,
            properties={"network": self._network},
            addresses=[ipaddress.ip_address(host).packed for host in hosts],
            server=f"{self.own}.local.",
        )
        version = IPVersion.All if any(":" in host for host in hosts) else IPVersion.V4Only
        zeroconf = await trio.to_thread.run_sync(partial(Zeroconf, interfaces=hosts, ip_version=version))
        try:
            ServiceBrowser(zeroconf, _TYPE, handlers=[hear])
            await trio.to_thread.run_sync(zeroconf.register_service, service, abandon_on_cancel=True)
            await trio.sleep_forever()
        finally:
            with trio.move_on_after(_FAREWELL, shield=True):
                await trio.to_thread.run_sync(zeroconf.close, abandon_on_cancel=True)

    @property
    def _network(self) -> str:
        return blake3(self.network_id.encode(), derive_key_context="meshnode names on the local network").hexdigest(8)


def _places(addresses: Iterable[str]) -> tuple[Address, ...]:
    """Return where we are reached by IP address; all at the port of the first, for a service has but one."""
    places = []
    for place in map(parse_address, direct_only(addresses)):
        with contextlib.suppress(ValueError):
            ipaddress.ip_address(place.host)
            places.append(place)
    return tuple(place for place in places if place.port == places[0].port)[:_MAX_ADDRESSES]


# In a thread of zeroconf's


def _hear(
    network: str,
    own: PeerId,
    tell: Found,
    zeroconf: Zeroconf,
    service_type: str,
    name: str,
    state_change: ServiceStateChange,
) -> None:
    if state_change is ServiceStateChange.Removed:
        return  # a link that ends tells more
    try:
        peer = PeerId(name.removesuffix(f".{_TYPE}"))
        parse_peer_id(peer)
        info = None if peer == own else zeroconf.get_service_info(service_type, name, timeout=_QUERY)
        if info is not None and info.properties.get(b"network") == network.encode():
            tell(peer, tuple(_addresses(info, peer)))
    except ValueError as error:
        _log.debug("not a node of ours", name=short(name), why=str(error))
    except Exception:  # noqa: BLE001  # what strangers on the local network send must not end the thread
        _log.exception("a message of the local network was not understood", name=short(name))


def _addresses(info: ServiceInfo, peer: PeerId) -> Iterator[str]:
    for host in info.parsed_addresses()[:_MAX_ADDRESSES]:
        yield str(Address(host, info.port or 0, peer))


def _hand_over(token: trio.lowlevel.TrioToken, found: Found, peer: PeerId, addresses: Sequence[str]) -> None:
    with contextlib.suppress(trio.RunFinishedError):
        token.run_sync_soon(found, peer, addresses)
