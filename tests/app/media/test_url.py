"""Which URLs are read, how, and which of them are allowed."""

import pytest

from app.media.url import AllowedDomains, MediaUrl, UrlError


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("https://example.com", ("https", "example.com", 443, "/")),
        ("HTTP://EXAMPLE.com./a?b=c&d#e", ("http", "example.com", 80, "/a?b=c&d")),
        ("https://example.com:8443/a%20b", ("https", "example.com", 8443, "/a%20b")),
        ("https://bücher.example/ä", ("https", "xn--bcher-kva.example", 443, "/%C3%A4")),
        ("http://93.184.216.34/x", ("http", "93.184.216.34", 80, "/x")),
        ("http://[2606:4700::0:1111]:80/x", ("http", "2606:4700::1111", 80, "/x")),
        ("http://my_bucket.example.com/x", ("http", "my_bucket.example.com", 80, "/x")),
    ],
)
def test_what_is_read(text: str, read: tuple[str, str, int, str]) -> None:
    url = MediaUrl.parse(text)
    assert (url.scheme, url.host, url.port, url.target) == read
    assert MediaUrl.parse(str(url)) == url


@pytest.mark.parametrize(
    "text",
    [
        "",
        "example.com/x",
        "//example.com/x",
        "file:///etc/passwd",
        "ftp://example.com/x",
        "gopher://example.com/",
        "http:/example.com",
        "http:///x",
        "http://?x",
        "http://user@example.com/",
        "http://user:password@example.com/",
        "http://example.com:99999999999/",
        "http://example.com:8a/",
        "http://example.com\\@evil.example/",
        "http://example.com /",
        "http://example.com/a b",
        "http://exa\tmple.com/",
        "http://example.com/\r\nHost: evil",
        "http://example.com/\x00",
        "http://example.com/\u2028",
        "http://example.com/\u200b",
        "http://example.com/\ud800",
        "http://ex%61mple.com/",
        "http://example..com/",
        "http://.example.com/",
        "http://-example.com/",
        "http://example,com/",
        f"http://{'a' * 64}.com/",
        f"http://{'a.' * 130}com/",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0x7f.1/",
        "http://017700000001/",
        "http://0177.0.0.1/",
        "http://127.1/",
        "http://127.0.0.1.1/",
        "http://1.2.3.256/",
        "http://\uff11\uff12\uff17.0.0.1/",
        "http://[::1/",
        "http://[::1]x/",
        "http://[fe80::1%25eth0]/",
        "http://" + "a" * 70_000,
    ],
)
def test_what_is_not(text: str) -> None:
    with pytest.raises(UrlError, match=r"^(must|is|has) [A-Za-z ,]+\.$"):
        MediaUrl.parse(text)


@pytest.mark.parametrize(
    ("location", "leads_to"),
    [
        (b"/other", "https://example.com:8443/other"),
        (b"other?x", "https://example.com:8443/a/other?x"),
        (b"//other.example/x", "https://other.example/x"),
        (b"http://other.example", "http://other.example/"),
        (b"", "https://example.com:8443/a/b"),
    ],
)
def test_redirects(location: bytes, leads_to: str) -> None:
    assert str(MediaUrl.parse("https://example.com:8443/a/b").join(location)) == leads_to


@pytest.mark.parametrize(
    "location",
    [b"file:///etc/passwd", b"javascript:x", b"\\\\evil.example", b"http://a b", b"http://u@h/", b"\xff", b"//127.1/"],
)
def test_redirects_that_lead_nowhere(location: bytes) -> None:
    with pytest.raises(UrlError):
        MediaUrl.parse("https://example.com/").join(location)


@pytest.mark.parametrize(
    ("entries", "allowed", "refused"),
    [
        ([], [], ["http://example.com"]),
        (
            ["example.com"],
            ["http://example.com", "https://EXAMPLE.com.:443/x"],
            [
                "http://www.example.com",
                "http://example.com:8080",
                "http://example.com.evil.example",
                "http://xexample.com",
            ],
        ),
        (
            ["*.example.com"],
            ["https://www.example.com", "https://a.b.example.com"],
            ["https://example.com", "https://wwwexample.com", "https://www.example.com:8443"],
        ),
        (["example.com:8443"], ["https://example.com:8443"], ["https://example.com", "https://example.com:8444"]),
        (["*.example.com:8443"], ["https://www.example.com:8443"], ["https://www.example.com"]),
        (["*"], ["http://example.com", "https://93.184.216.34", "http://[2606:4700::1]"], ["http://example.com:22"]),
        (["*:8080"], ["http://example.com:8080"], ["http://example.com"]),
        (["BÜCHER.example"], ["https://xn--bcher-kva.example"], ["https://bucher.example"]),
        (["[2606:4700:0::1]", "1.2.3.4"], ["http://[2606:4700::1]", "http://1.2.3.4"], ["http://[2606:4700::2]"]),
    ],
)
def test_allowed_domains(entries: list[str], allowed: list[str], refused: list[str]) -> None:
    domains = AllowedDomains(entries)
    assert [url for url in allowed if MediaUrl.parse(url) not in domains] == []
    assert [url for url in refused if MediaUrl.parse(url) in domains] == []


@pytest.mark.parametrize(
    "entry",
    [
        "",
        "https://example.com",
        "example.com/",
        "*example.com",
        "a.*.com",
        "*.*",
        "user@h",
        "h:",
        "h:x",
        "a b",
        "::1",
        "*.1",
    ],
)
def test_entries_that_say_nothing(entry: str) -> None:
    with pytest.raises(ValueError, match=f'^has "{entry}"'.replace("*", r"\*").replace(".", r"\.")):
        AllowedDomains([entry])
