"""The direct transport's parsers of strangers' bytes: whatever comes, an answer or InvalidInput."""

from __future__ import annotations

import contextlib
import itertools
import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fractal.api.errors import InvalidInput
from fractal.api.names import normal_host
from fractal.builtin.direct import http1, proxy
from fractal.builtin.direct.hello import MAX_HELLO, HelloReader, server_name


def real_hello(name: str | None) -> bytes:
    """The bytes that OpenSSL sends first."""
    outgoing = ssl.MemoryBIO()
    context = ssl.create_default_context()
    context.check_hostname = False
    tls = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def read_name(pieces: list[bytes]) -> str | None:
    reader = HelloReader()
    for piece in pieces:
        if (body := reader.feed(piece)) is not None:
            assert bytes(reader.received) == b"".join(pieces)
            return server_name(body)
    raise InvalidInput("incomplete")


HELLO = real_hello("App.Example.")


@given(st.lists(st.integers(0, len(HELLO)), max_size=20))
def test_name_is_found_however_the_hello_is_cut(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(HELLO)]
    pieces = [HELLO[a:b] for a, b in itertools.pairwise(edges)]
    while not pieces[-1]:
        pieces.pop()  # nothing is fed after the hello is complete
    assert read_name(pieces) == "app.example"


@given(st.integers(1, 300))
def test_name_is_found_over_several_records(size: int) -> None:
    message = HELLO[5:]
    parts = [message[i : i + size] for i in range(0, len(message), size)]
    assert (
        read_name([b"".join(b"\x16\x03\x01" + len(p).to_bytes(2, "big") + p for p in parts)]) == "app.example"
    )


def test_hello_without_a_name() -> None:
    assert read_name([real_hello(None)]) is None


@given(st.binary(max_size=600))
def test_garbage_hello(data: bytes) -> None:
    with contextlib.suppress(InvalidInput):
        read_name([data])


@given(st.integers(0, len(HELLO) - 1), st.integers(0, 255))
def test_damaged_hello(at: int, byte: int) -> None:
    with contextlib.suppress(InvalidInput):
        read_name([HELLO[:at] + bytes([byte]) + HELLO[at + 1 :]])


def test_endless_hello_is_given_up() -> None:
    reader = HelloReader()
    piece = b"\x16\x03\x01\x00\x01"
    reader.feed(piece + b"\x01" + b"".join(piece + b for b in (b"\x00", b"\x3f", b"\xff")))
    with pytest.raises(InvalidInput):
        for _ in range(MAX_HELLO):
            reader.feed(piece + b"\x00")


ADDRESSES = st.tuples(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str), st.integers(0, 65535))


@given(
    client=st.none() | ADDRESSES,
    server=ADDRESSES,
    route=st.sampled_from(["", "app.example", ":2222"]),
    token=st.binary(max_size=64),
    datagram=st.booleans(),
)
def test_header_round_trip(
    client: tuple[str, int] | None, server: tuple[str, int], route: str, token: bytes, datagram: bool
) -> None:
    header = proxy.Header(
        client=client,
        server=server,
        route=route,
        token=token,
        gateway="ab",
        datagram=datagram and client is not None,
    )
    data = proxy.encode(header)
    found, rest = proxy.split(data + b"payload")
    assert rest == b"payload"
    assert (found.route, found.token, found.gateway) == (route, token, "ab")
    assert found.datagram == header.datagram
    assert (found.client is None) == (client is None)
    if client is not None and found.client is not None:
        assert found.client[1] == client[1]


@given(st.binary(max_size=300))
def test_garbage_header(data: bytes) -> None:
    for text in (data, proxy.SIGNATURE + data):
        with contextlib.suppress(InvalidInput):
            proxy.split(text)


@given(st.text(max_size=300))
def test_names(text: str) -> None:
    with contextlib.suppress(InvalidInput):
        name = normal_host(text)
        assert normal_host(name) == name
        assert name.isascii()
        assert "/" not in name


@given(st.binary(max_size=300))
def test_garbage_requests(data: bytes) -> None:
    for head in (data, b"GET / HTTP/1.1\r\nHost: a\r\n" + data + b"\r\n\r\n"):
        with contextlib.suppress(http1.HttpError):
            request = http1.parse_request(head)
            http1.request_framing(request)
            http1.host_of(request)
            sent = http1.forwarded_request(request, "192.0.2.1")
            again = http1.parse_request(sent)
            assert http1.request_framing(again) == http1.request_framing(request)
            assert http1.values(again.fields, b"x-forwarded-for") == [b"192.0.2.1"]


@given(st.binary(max_size=300))
def test_garbage_responses(data: bytes) -> None:
    for head in (data, b"HTTP/1.1 200 OK\r\n" + data + b"\r\n\r\n"):
        with contextlib.suppress(http1.HttpError):
            response = http1.parse_response(head)
            http1.response_framing(response, b"GET")
            http1.parse_response(http1.forwarded_response(response, close=True))
