"""Which addresses are outside."""

import socket
from ipaddress import ip_address

import pytest

from app.media.address import Resolver, is_public


@pytest.mark.parametrize(
    "address",
    ["93.184.216.34", "1.1.1.1", "2606:4700:4700::1111", "64:ff9b::1.1.1.1", "2002:101:101::1", "::ffff:1.1.1.1"],
)
def test_public(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.255.255.254", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254"),
        *("100.64.0.1", "100.100.100.200", "192.0.2.1", "198.18.0.1", "224.0.0.1", "239.255.255.250", "240.0.0.1"),
        *("255.255.255.255", "168.63.129.16"),
        *("::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1", "2001::1"),
        *("::127.0.0.1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::ffff:168.63.129.16"),
        *("64:ff9b::127.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1.1.1.1", "2002:7f00:1::", "2002:a00:1::1"),
        *("fec0::1", "100::1"),
    ],
)
def test_not_public(address: str) -> None:
    assert not is_public(ip_address(address))


async def test_the_system_resolves() -> None:
    resolve = Resolver(1)
    assert ip_address("127.0.0.1") in await resolve("127.0.0.1", 80)
    with pytest.raises(socket.gaierror):
        await resolve("does-not-exist.invalid", 80)
