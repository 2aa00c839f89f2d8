"""Public and non-public internet addresses: a request must not make the server connect to private networks."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network

_NOT_PUBLIC_4 = tuple(
    ip_network(block)
    # Protocol assignments (with the metadata address of one cloud) and the abandoned 6to4 relays: older versions of
    # Python call parts of these blocks global. The last address is global, but inside Azure it leads to the agent of
    # the host.
    for block in ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32")
)
_GLOBAL_UNICAST_6 = IPv6Network("2000::/3")
_NOT_PUBLIC_6 = tuple(
    ip_network(block)
    # Protocol assignments (with Teredo), and two blocks for documentation.
    for block in ("2001::/23", "2001:db8::/32", "3fff::/20")
)
_NAT64 = IPv6Network("64:ff9b::/96")
_6TO4 = IPv6Network("2002::/16")


def is_public(address: str) -> bool:
    """Whether a numeric address is on the public internet.

    False for loopback, private, link-local (cloud metadata too), shared, multicast, reserved and unspecified
    addresses, and for IPv6 forms (IPv4-mapped, NAT64, 6to4) of such IPv4 addresses. Sources: the IANA
    special-purpose address registries (RFC 6890), RFC 6052 and RFC 3056. Raises ValueError for a host name.
    """
    parsed = ip_address(address)
    if isinstance(parsed, IPv4Address):
        return _is_public_4(parsed)
    embedded = _embedded(parsed)
    if embedded is not None:
        return _is_public_4(embedded)
    return parsed in _GLOBAL_UNICAST_6 and parsed.is_global and not any(parsed in block for block in _NOT_PUBLIC_6)


def _is_public_4(address: IPv4Address) -> bool:
    return (
        address.is_global
        and not address.is_multicast
        and not address.is_reserved
        and not any(address in block for block in _NOT_PUBLIC_4)
    )


def _embedded(address: IPv6Address) -> IPv4Address | None:
    """The IPv4 address that an IPv6 address embeds, to which its packets are delivered; None if there is none."""
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    if address in _6TO4:
        return IPv4Address(int(address) >> 80 & 0xFFFFFFFF)
    return None
