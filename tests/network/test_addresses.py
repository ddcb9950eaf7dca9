import ipaddress
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.crypto.identity import Identity
from meshnode.network import addresses
from meshnode.network.addresses import (
    Address,
    chosen,
    direct_only,
    is_local,
    is_neighbour,
    local_hosts,
    parse_address,
)

A, B = Identity(bytes(32)).peer, Identity(bytes(range(32))).peer


@pytest.mark.parametrize(
    ("text", "address"),
    [
        (f"/ip4/192.0.2.7/tcp/8090/p2p/{A}", Address("192.0.2.7", 8090, A)),
        (f"/ip6/2001:db8::7/tcp/8090/p2p/{A}", Address("2001:db8::7", 8090, A)),
        (f"/dns/node.example/tcp/1/p2p/{A}", Address("node.example", 1, A)),
        (f"/ip4/192.0.2.7/tcp/8090/p2p/{B}/p2p-circuit/p2p/{A}", Address("192.0.2.7", 8090, A, B)),
    ],
)
def test_an_address_reads_as_it_is_written(text, address):
    assert parse_address(text) == address
    assert str(address) == text
    assert address.is_direct == ("circuit" not in text)


def test_other_kinds_of_names_are_names():
    assert parse_address(f"/dns4/node.example/tcp/1/p2p/{A}") == Address("node.example", 1, A)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        f"/ip4/192.0.2.7/tcp/8090/p2p/{A}/",
        f"/ip4/192.0.2.7/udp/8090/quic-v1/p2p/{A}",
        f"/ip4/2001:db8::7/tcp/8090/p2p/{A}",
        f"/ip4/300.0.2.7/tcp/8090/p2p/{A}",
        f"/ip4/192.0.2.7/tcp/0/p2p/{A}",
        f"/ip4/192.0.2.7/tcp/65536/p2p/{A}",
        f"/ip4/192.0.2.7/tcp/²/p2p/{A}",
        f"/dns//tcp/1/p2p/{A}",
        "/ip4/192.0.2.7/tcp/8090",
        "/ip4/192.0.2.7/tcp/8090/p2p/QmNotEd25519",
        f"/ip4/192.0.2.7/tcp/8090/p2p/{B}/p2p-circuit",
        f"/ip4/192.0.2.7/tcp/8090/p2p/{B}/p2p-circuit/p2p/{A}/p2p-circuit/p2p/{B}",
        f"/ip4/192.0.2.7/tcp/8090/p2p/{B}/p2p-circuit{A}",
        f"/dns/{'a' * 600}/tcp/1/p2p/{A}",
    ],
)
def test_what_is_no_address_is_refused_with_a_sentence(text):
    with pytest.raises(ValueError, match=r"\w+ \w+"):
        parse_address(text)


@given(st.text(max_size=200))
def test_no_text_breaks_the_reader(text):
    with pytest.raises(ValueError):
        parse_address(text)


def test_a_bound_address_is_itself_and_a_wildcard_is_all_of_the_machine():
    assert local_hosts("127.0.0.1") == ("127.0.0.1",)
    everywhere = local_hosts("0.0.0.0")
    assert everywhere
    assert "0.0.0.0" not in everywhere
    assert all(ipaddress.ip_address(host).version == 4 for host in everywhere)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "10.1.2.3", "172.31.0.1", "192.168.0.9", "169.254.7.7", "::1", "fd00::1", "fe80::1%eth0"]
)
def test_a_local_network_has_addresses_of_its_own(host):
    assert is_local(host)


@pytest.mark.parametrize(
    "host", ["8.8.8.8", "172.32.0.1", "100.64.0.1", "198.51.100.7", "2001:4860::1", "::ffff:8.8.8.8"]
)
def test_the_rest_of_the_world_is_not_local(host):
    assert not is_local(host)


def interfaces(*networks):
    """Return what psutil says of a machine with these interfaces."""
    parsed = [ipaddress.ip_interface(network) for network in networks]
    return {
        f"eth{number}": [SimpleNamespace(address=str(each.ip), netmask=str(each.netmask))]
        for number, each in enumerate(parsed)
    } | {"bare": [SimpleNamespace(address="02:42:ac:11:00:02", netmask=None)]}


@pytest.mark.parametrize(
    ("host", "is_ours"),
    [
        ("192.168.7.9", True),
        ("::ffff:192.168.7.9", True),
        ("192.168.8.9", False),  # private, and somewhere else
        ("10.3.200.1", True),
        ("10.4.0.1", False),
        ("fd00:1::5", True),
        ("fd00:2::5", False),
        ("203.0.113.9", False),  # the neighbours of a rented machine are strangers
        ("2001:db8::9", False),
        ("127.0.0.5", True),
        ("::1", True),
        ("169.254.1.1", True),
    ],
)
def test_a_neighbour_is_in_a_local_network_of_ours(monkeypatch, host, is_ours):
    ours = interfaces("192.168.7.2/24", "10.3.0.2/16", "fd00:1::1/64", "203.0.113.7/24", "2001:db8::1/64")
    monkeypatch.setattr(addresses.psutil, "net_if_addrs", lambda: ours)
    assert is_neighbour(host) is is_ours


def relayed(number):
    return f"/ip4/192.0.2.{number}/tcp/1/p2p/{B}/p2p-circuit/p2p/{A}"


def direct(number):
    return f"/ip4/192.0.2.{number}/tcp/1/p2p/{A}"


def test_many_interfaces_do_not_crowd_out_the_way_through_a_relay():
    every = [direct(number) for number in range(20)] + [relayed(number) for number in range(20)]
    assert chosen(every, 8) == (*map(direct, range(6)), *map(relayed, range(2)))
    assert chosen(every[:20], 8) == tuple(map(direct, range(8)))
    assert chosen(every[20:], 8) == tuple(map(relayed, range(8)))
    assert chosen([relayed(1), direct(1), direct(1)], 8) == (direct(1), relayed(1))
    assert direct_only(every) == tuple(every[:20])
