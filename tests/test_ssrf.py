from __future__ import annotations

import socket

import pytest

from exporter.ssrf import ForbiddenAddressError, is_forbidden, is_ip_address, ssrf_safe_socket


@pytest.mark.parametrize(
    "address",
    [
        *("169.254.0.1", "169.254.169.254", "169.254.255.255"),
        *("fe80::1", "fe80::1%eth0", "febf::1"),
        *("::ffff:169.254.169.254", "::ffff:a9fe:a9fe", "::169.254.169.254"),
        *("64:ff9b::169.254.169.254", "64:ff9b:1::a9fe:a9fe", "::ffff:0:169.254.169.254"),
        *("2002:a9fe:a9fe::1", "2001:0:a9fe:a9fe:0:0:0:0", "2001:0:1:1:0:0:5601:5601"),
        *("fd00:ec2::254", "fd20:ce::254", "168.63.129.16", "100.100.100.200", "192.0.0.192"),
        *("::ffff:168.63.129.16", "::ffff:100.100.100.200"),
    ],
)
def test_refused(address: str) -> None:
    assert is_ip_address(address)
    assert is_forbidden(address)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with pytest.raises(ForbiddenAddressError):
        ssrf_safe_socket((family, socket.SOCK_STREAM, 6, "", (address, 80)))


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "::1", "10.0.0.1", "192.168.1.1", "100.100.100.201", "203.0.113.7"),
        *("169.253.255.255", "169.255.0.0", "fec0::1", "2001:db8::1", "::ffff:10.0.0.1"),
        *("fd00:ec2::253", "64:ff9b::a00:1", "2002:a00:1::1"),
    ],
)
def test_allowed(address: str) -> None:
    assert not is_forbidden(address)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    if family == socket.AF_INET or socket.has_ipv6:
        ssrf_safe_socket((family, socket.SOCK_STREAM, 6, "", (address, 80))).close()


@pytest.mark.parametrize("host", ["localhost", "0xa9fea9fe", "169.254", "example.com", ""])
def test_names_are_looked_at_when_they_are_connected_to(host: str) -> None:
    assert not is_ip_address(host)
