"""Where a host name leads, and whether that is outside."""

from __future__ import annotations

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

Address = IPv4Address | IPv6Address

NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052: its last 32 bits are the IPv4 address that is reached
GLOBAL_UNICAST = IPv6Network("2000::/3")
WIRE_SERVER = IPv4Address("168.63.129.16")
"""Answers virtual machines in Azure, as 169.254.169.254 does elsewhere, under an address that is public by number."""


def is_public(address: Address) -> bool:
    """Whether the address is one of the public internet; an IPv6 address that stands for an IPv4 one is as that is."""
    if isinstance(address, IPv6Address):
        embedded = IPv4Address(int(address) & 0xFFFFFFFF) if address in NAT64 else None
        inner = address.ipv4_mapped or address.sixtofour or embedded
        if inner is not None:
            return is_public(inner)
        if address not in GLOBAL_UNICAST:  # the flags below miss fec0::/10
            return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address == WIRE_SERVER)


class Resolver:
    """The system's resolver, in threads of its own: names that are slow to resolve must not hold up other work."""

    def __init__(self, threads: int) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="resolver")

    async def __call__(self, host: str, port: int) -> list[Address]:
        """All addresses of a host. Raises :class:`OSError` for one that has none."""

        def resolve() -> list[Address]:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
            return list(dict.fromkeys(ip_address(entry[4][0]) for entry in found))

        return await asyncio.get_running_loop().run_in_executor(self._threads, resolve)
