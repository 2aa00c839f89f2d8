from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerankd.media.addresses import is_public

INSIDE_4 = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
]
"""RFC 6890 and the IANA registry: every IPv4 block that is not for the open internet."""

INSIDE_6 = [
    "::/128",
    "::1/128",
    "::/96",
    "::ffff:0:0:0/96",
    "64:ff9b:1::/48",
    "100::/64",
    "2001::/23",
    "2001:db8::/32",
    "3fff::/20",
    "5f00::/16",
    "fc00::/7",
    "fe80::/10",
    "fec0::/10",
    "ff00::/8",
]


def of_block(block: str) -> st.SearchStrategy[str]:
    network = ip_network(block)
    low, high = int(network.network_address), int(network.broadcast_address)
    kind = IPv4Address if network.version == 4 else IPv6Address
    return st.integers(low, high).map(lambda number: str(kind(number)))


@given(st.sampled_from(INSIDE_4 + INSIDE_6).flatmap(of_block))
def test_nothing_inside_is_public(address: str) -> None:
    assert not is_public(address)


def carried(address: str) -> list[str]:
    number = int(IPv4Address(address))
    return [
        str(IPv6Address((0xFFFF << 32) | number)),
        str(IPv6Address((0x64FF9B << 96) | number)),
        str(IPv6Address((0x2002 << 112) | (number << 80) | 1)),
    ]


@given(st.sampled_from(INSIDE_4).flatmap(of_block), st.sampled_from(range(3)))
def test_no_ipv6_form_of_an_inside_address_is_public(address: str, form: int) -> None:
    assert not is_public(carried(address)[form])


@pytest.mark.parametrize("address", ["1.1.1.1", "8.8.8.8", "93.184.216.34", "223.255.255.254", "100.128.0.1"])
def test_the_open_internet_is(address: str) -> None:
    assert is_public(address)
    assert all(is_public(form) for form in carried(address))


@pytest.mark.parametrize("address", ["2606:4700::1111", "2a00:1450:4001:81b::200e", "2400:cb00::1"])
def test_the_open_internet_of_ipv6_is(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "169.254.169.254",
        "fd00:ec2::254",
        "::1",
        "fe80::1%eth0",
        "::ffff:169.254.169.254",
        "100.100.100.200",
        "192.0.0.192",
        "168.63.129.16",
        "::ffff:168.63.129.16",
    ],
)
def test_the_usual_targets(address: str) -> None:
    assert not is_public(address)


def test_a_name_is_no_address() -> None:
    with pytest.raises(ValueError, match="localhost"):
        is_public("localhost")
