"""Heads that two readers could understand differently, and what the app is told."""

from __future__ import annotations

import pytest

from fractal.builtin.direct import http1


def request(*lines: str) -> http1.Request:
    return http1.parse_request("\r\n".join([*lines, "", ""]).encode("latin-1"))


@pytest.mark.parametrize(
    "lines",
    [
        ["POST / HTTP/1.1", "Host: a", "Content-Length: 5", "Transfer-Encoding: chunked"],
        ["POST / HTTP/1.1", "Host: a", "Content-Length: 5", "Content-Length: 6"],
        ["POST / HTTP/1.1", "Host: a", "Content-Length: +5"],
        ["POST / HTTP/1.1", "Host: a", "Content-Length: 0x5"],
        ["POST / HTTP/1.1", "Host: a", "Content-Length: "],
        ["POST / HTTP/1.1", "Host: a", "Transfer-Encoding: gzip, chunked"],
        ["POST / HTTP/1.1", "Host: a", "Transfer-Encoding: chunked", "Transfer-Encoding: chunked"],
        ["POST / HTTP/1.0", "Host: a", "Transfer-Encoding: chunked"],
        ["POST / HTTP/1.1", "Host: a", "Transfer-Encoding : chunked"],
        ["POST / HTTP/1.1", "Host: a", " folded"],
        ["POST / HTTP/1.1", "Host: a", "X: a\nTransfer-Encoding: chunked"],
        ["POST / HTTP/1.1", "Host: a", "X: a\0"],
        ["POST  / HTTP/1.1", "Host: a"],
        ["POST / HTTP/2.0", "Host: a"],
        ["CONNECT a:443 HTTP/1.1", "Host: a"],
    ],
)
def test_ambiguous_requests_are_refused(lines: list[str]) -> None:
    with pytest.raises(http1.HttpError):
        http1.request_framing(request(*lines))


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (["GET / HTTP/1.1"], 400),
        (["GET / HTTP/1.1", "Host: a", "Host: a"], 400),
        (["GET https://b/ HTTP/1.1", "Host: a"], 400),
        (["GET b HTTP/1.1", "Host: a"], 400),
        (["GET / HTTP/1.1", "Host: "], 421),
        (["GET / HTTP/1.1", "Host: user@a"], 421),
        (["GET / HTTP/1.1", "Host: [::1]"], 421),
        (["GET / HTTP/1.1", "Host: a b"], 421),
    ],
)
def test_unclear_hosts_are_refused(lines: list[str], status: int) -> None:
    with pytest.raises(http1.HttpError) as caught:
        http1.host_of(request(*lines))
    assert caught.value.status == status


@pytest.mark.parametrize("host", ["a.example", "A.Example.", "a.example:443", "a.example:"])
def test_host_spellings(host: str) -> None:
    assert http1.host_of(request("GET / HTTP/1.1", f"Host: {host}")) == "a.example"


def test_client_cannot_have_our_fields_dropped() -> None:
    sent = http1.forwarded_request(
        request(
            "GET / HTTP/1.1",
            "Host: a",
            "Connection: close, X-Forwarded-For, X-Own, Host",
            "X-Own: 1",
            "X-Forwarded-For: 192.0.2.66",
            "Cookie: kept",
        ),
        "198.51.100.7",
    )
    assert sent == (
        b"GET / HTTP/1.1\r\nHost: a\r\nCookie: kept\r\nX-Forwarded-For: 198.51.100.7\r\n"
        b"X-Forwarded-Proto: https\r\nX-Forwarded-Host: a\r\nConnection: close\r\n\r\n"
    )


def test_only_websockets_are_upgraded() -> None:
    upgrade = ["GET / HTTP/1.1", "Host: a", "Connection: keep-alive, Upgrade"]
    assert http1.wants_websocket(request(*upgrade, "Upgrade: websocket"))
    assert not http1.wants_websocket(request(*upgrade, "Upgrade: h2c"))
    assert b"h2c" not in http1.forwarded_request(request(*upgrade, "Upgrade: h2c"), "192.0.2.1")
    assert not http1.wants_websocket(request(*upgrade, "Upgrade: websocket", "Content-Length: 3"))


def test_app_cannot_send_clients_elsewhere_by_alt_svc() -> None:
    response = http1.parse_response(
        b'HTTP/1.1 200 OK\r\nAlt-Svc: h3=":443"\r\nConnection: keep-alive\r\nX: 1\r\n\r\n'
    )
    assert http1.forwarded_response(response, close=False) == b"HTTP/1.1 200 OK\r\nX: 1\r\n\r\n"


@pytest.mark.parametrize(
    ("status", "method", "fields", "framing"),
    [
        (200, b"HEAD", b"Content-Length: 5\r\n", 0),
        (204, b"GET", b"", 0),
        (304, b"GET", b"Content-Length: 5\r\n", 0),
        (200, b"GET", b"Content-Length: 5\r\n", 5),
        (200, b"GET", b"Transfer-Encoding: chunked\r\n", http1.End.CHUNKED),
        (200, b"GET", b"", http1.End.CLOSE),
    ],
)
def test_where_a_response_ends(status: int, method: bytes, fields: bytes, framing: http1.Framing) -> None:
    response = http1.parse_response(b"HTTP/1.1 %d X\r\n" % status + fields + b"\r\n")
    assert http1.response_framing(response, method) == framing


@pytest.mark.parametrize("line", [b"", b"-1", b"+1", b"0x1", b"1 2", b"1" * 16, b"g", b"1;a\nb"])
def test_malformed_chunks(line: bytes) -> None:
    with pytest.raises(http1.HttpError):
        http1.chunk_size(line)
