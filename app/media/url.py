"""URLs of pictures: read once, by one parser, for the check and for the connection alike."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address

import httpx

DEFAULT_PORTS = {"http": 80, "https": 443}
HOST_NAME = re.compile(r"(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
LONGEST_HOST_NAME = 253
NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
"""A host whose last label is one is read as an address by some programs, and as a name by others."""
ENTRY = re.compile(
    r"(?:(?P<any>\*)|(?P<below>\*\.)?(?P<host>[^\s*:/?#@\[\]]+|\[[0-9a-fA-F:.]+\]))(?::(?P<port>\d{1,5}))?"
)


class UrlError(ValueError):
    """What is wrong with a URL, as the end of a sentence that begins with the name of its field."""


@dataclass(frozen=True)
class MediaUrl:
    """An http or https URL without credentials and fragment."""

    scheme: str
    host: str
    """ASCII, lower case, without the trailing dot; an IPv6 address without its brackets."""
    port: int
    target: str
    """Path and query, percent-encoded."""

    @classmethod
    def parse(cls, text: str) -> MediaUrl:
        """Raises :class:`UrlError`."""
        _check_characters(text)
        try:
            url = httpx.URL(text)
        except (httpx.InvalidURL, UnicodeError):
            raise UrlError("is not a valid URL.") from None
        if url.scheme not in DEFAULT_PORTS:
            raise UrlError("must be an http or https URL.")
        if url.userinfo:
            raise UrlError("must not contain credentials.")
        port = DEFAULT_PORTS[url.scheme] if url.port is None else url.port
        if not 0 < port < 2**16:
            raise UrlError("has a port that does not exist.")
        return cls(url.scheme, _checked_host(url.raw_host.decode("ascii")), port, url.raw_path.decode("ascii"))

    def join(self, location: bytes) -> MediaUrl:
        """Where a redirect from here leads. Raises :class:`UrlError`."""
        try:
            text = location.decode("ascii")
            _check_characters(text)
            return MediaUrl.parse(str(httpx.URL(str(self)).join(text)))
        except (httpx.InvalidURL, UnicodeError):
            raise UrlError("is not a valid URL.") from None

    @property
    def authority(self) -> str:
        """Host and port as the Host header has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.target}"


def _check_characters(text: str) -> None:
    if "\\" in text or not text.isprintable() or any(map(str.isspace, text)):
        raise UrlError("must not contain spaces, backslashes or control characters.")


def _checked_host(host: str) -> str:
    """The host in its one form. An address in any but its usual notation is refused, not interpreted."""
    try:
        if ":" in host:
            address = IPv6Address(host)
            if address.scope_id is None:
                return str(address)
        else:
            host = host[:-1] if host.endswith(".") else host
            if NUMBER.fullmatch(host.rpartition(".")[2]):
                return str(IPv4Address(host))
            if HOST_NAME.fullmatch(host) and len(host) <= LONGEST_HOST_NAME:
                return host
    except AddressValueError:
        pass
    raise UrlError("has a host that is neither a name nor an address.")


@dataclass(frozen=True)
class _Entry:
    host: str | None
    """``None`` is any host."""
    below: bool
    """Whether the hosts below ``host`` are meant in its place."""
    port: int | None

    @classmethod
    def parse(cls, text: str) -> _Entry:
        parts = ENTRY.fullmatch(text)
        if parts is None:
            raise ValueError(f'has "{text}", which is not of the form example.com, *.example.com or example.com:8443.')
        port = None if parts["port"] is None else int(parts["port"])
        if parts["any"]:
            return cls(None, False, port)
        try:
            url = MediaUrl.parse(f"http://{parts['host']}/")
        except UrlError as error:
            raise ValueError(f'has "{text}", which {error}') from None
        return cls(url.host, parts["below"] is not None, port)

    def allows(self, url: MediaUrl) -> bool:
        if url.port not in (DEFAULT_PORTS.values() if self.port is None else (self.port,)):
            return False
        if self.host is None:
            return True
        return url.host.endswith(f".{self.host}") if self.below else url.host == self.host


class AllowedDomains:
    """The hosts that pictures may be fetched from.

    ``example.com`` is this host at the ports 80 and 443, ``example.com:8443`` at that port alone, ``*.example.com``
    each host below it but not itself, ``*`` every host. All of them must still lead to public addresses.
    """

    def __init__(self, entries: Iterable[str] = ()) -> None:
        """Raises :class:`ValueError` for an entry of another form."""
        self._entries = tuple(map(_Entry.parse, entries))

    def __bool__(self) -> bool:
        return bool(self._entries)

    def __contains__(self, url: MediaUrl) -> bool:
        return any(entry.allows(url) for entry in self._entries)
