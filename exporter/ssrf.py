"""Protection against server-side request forgery: addresses that are refused for notifications.

The person who chooses a URL, or the DNS record of its host, must not reach services that only this
machine can reach, such as the metadata service of a cloud, which returns credentials. The address
is checked when the socket is created, so a later DNS answer cannot bypass the check.
"""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any, Final

from exporter.errors import RequestError

# Metadata services outside of the link-local range: AWS and Google (IPv6), Azure, Alibaba, Oracle.
_METADATA: Final = tuple(
    map(
        ip_address,
        "fd00:ec2::254 fd20:ce::254 168.63.129.16 100.100.100.200 192.0.0.192".split(),  # noqa: SIM905
    )
)
# IPv6 networks with an IPv4 address in the last 32 bits: compatible, NAT64 and SIIT.
_EMBEDS_IPV4: Final = tuple(
    map(ip_network, ("::/96", "64:ff9b::/96", "64:ff9b:1::/48", "::ffff:0:0:0/96"))
)


class ForbiddenAddressError(RequestError, OSError):
    """The address is refused for notifications."""


def is_ip_address(host: str) -> bool:
    try:
        ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def is_forbidden(address: str) -> bool:
    """Return whether an IP address, such as `169.254.169.254`, is refused.

    Raises:
        ValueError: not an IP address.
    """
    ip = ip_address(address.partition("%")[0])
    return any(one.is_link_local or one in _METADATA for one in (ip, *_embedded_ipv4(ip)))


def _embedded_ipv4(address: IPv4Address | IPv6Address) -> tuple[IPv4Address, ...]:
    """Return the IPv4 addresses embedded in an IPv6 address."""
    if isinstance(address, IPv4Address):
        return ()
    embedded = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if any(address in network for network in _EMBEDS_IPV4):
        embedded.append(IPv4Address(int(address) & 0xFFFFFFFF))
    return tuple(one for one in embedded if one is not None)


def ssrf_safe_socket(
    info: tuple[Any, ...],  # Any: from getaddrinfo: family, type, protocol, _, address
) -> socket.socket:
    """Create the socket for an address of `getaddrinfo`.

    Raises:
        ForbiddenAddressError: the address is refused.
    """
    family, kind, protocol, _, address = info
    if is_forbidden(address[0]):
        raise ForbiddenAddressError("link-local and metadata addresses are refused")
    return socket.socket(family, kind, protocol)
