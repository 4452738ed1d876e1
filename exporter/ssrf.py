"""Protection against server-side request forgery: addresses that notifications never go to.

A URL, or what its name resolves to, may be chosen by somebody who must not reach what only this
machine can: the metadata service of a cloud hands out credentials to requests from inside. The
address is checked when the socket is made, so that a second DNS answer changes nothing.
"""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any, Final

from exporter.errors import RequestError

# Metadata services outside of the link-local range: those of AWS and Google by IPv6, Azure's,
# Alibaba's and Oracle's.
_METADATA: Final = tuple(
    map(
        ip_address,
        "fd00:ec2::254 fd20:ce::254 168.63.129.16 100.100.100.200 192.0.0.192".split(),  # noqa: SIM905
    )
)
# IPv4 within IPv6, in its last 32 bits: compatible, translated (NAT64), and translated (SIIT).
_EMBEDS_IPV4: Final = tuple(
    map(ip_network, ("::/96", "64:ff9b::/96", "64:ff9b:1::/48", "::ffff:0:0:0/96"))
)


class ForbiddenAddressError(RequestError, OSError):
    """Notifications are never sent to this address."""


def is_ip_address(host: str) -> bool:
    """Return whether a host is an IP address, not a name."""
    try:
        ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def is_forbidden(address: str) -> bool:
    """Return whether notifications are never sent to an IP address, such as `169.254.169.254`.

    Raises:
        ValueError: it is no IP address.
    """
    ip = ip_address(address.partition("%")[0])
    return any(one.is_link_local or one in _METADATA for one in (ip, *_embedded_ipv4(ip)))


def _embedded_ipv4(address: IPv4Address | IPv6Address) -> tuple[IPv4Address, ...]:
    """Return the IPv4 addresses that an IPv6 address may stand for."""
    if isinstance(address, IPv4Address):
        return ()
    embedded = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if any(address in network for network in _EMBEDS_IPV4):
        embedded.append(IPv4Address(int(address) & 0xFFFFFFFF))
    return tuple(one for one in embedded if one is not None)


def ssrf_safe_socket(
    info: tuple[Any, ...],  # Any: as getaddrinfo returns it: family, type, protocol, _, address
) -> socket.socket:
    """Make the socket for an address that is about to be connected to.

    Raises:
        ForbiddenAddressError: notifications are never sent there.
    """
    family, kind, protocol, _, address = info
    if is_forbidden(address[0]):
        raise ForbiddenAddressError("link-local and metadata addresses are refused")
    return socket.socket(family, kind, protocol)
