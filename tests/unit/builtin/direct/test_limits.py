"""Ports, limits and hostile neighbours of the direct transport, on real sockets."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fractal.api.certificates import make_certificate
from fractal.api.errors import BackendError, Conflict, InvalidInput, Misconfigured
from fractal.api.transport import Certificate, Peer, RouteKind, Target
from fractal.builtin.direct import open_direct, proxy
from fractal.builtin.direct.config import DirectConfig
from fractal.builtin.direct.transport import DirectTransport
from fractal.shell.entropy import SystemEntropy
from fractal.testing.context import real_context
from fractal.testing.transport_parts import free_port, local_route, trust, web_app

NAME = "app.example"
GATEWAY, DEVICE = "a" * 20, "b" * 20
QUICK = DirectConfig(
    hold=0.5, greeting_timeout=0.4, half_open_timeout=0.4, probe_interval=0.1, max_per_client=20
)


@dataclasses.dataclass
class Pair:
    """A gateway that leads NAME to a device."""

    gateway: DirectTransport
    device: DirectTransport
    port: int
    certificate: Certificate

    def target(self, device: str = DEVICE) -> Target:
        contact = self.device.contact() if device else {}
        return Target(group="g", app="a", name=NAME, kind=RouteKind.HTTPS, device=device, contact=contact)

    async def forward(self, *targets: Target) -> None:
        await self.gateway.forward([Peer(device=DEVICE, contact=self.device.contact())], targets)

    async def raw(self, *, local: str = "127.0.0.1") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port, local_addr=(local, 0))

    async def tls(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(
            "127.0.0.1",
            self.port,
            ssl=trust(self.certificate),
            server_hostname=NAME,
            local_addr=("127.0.0.8", 0),
        )


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    port = free_port()
    certificate = make_certificate(NAME, SystemEntropy(), 1_790_000_000_000)
    async with (
        web_app("app") as app,
        real_context(tmp_path / "g", device=GATEWAY) as front,
        real_context(tmp_path / "d", device=DEVICE) as back,
        open_direct(front, dataclasses.replace(QUICK, https_port=port)) as gateway,
        open_direct(back, QUICK) as device,
    ):
        assert isinstance(gateway, DirectTransport) and isinstance(device, DirectTransport)
        pair = Pair(gateway, device, port, certificate)
        await device.serve(
            [Peer(device=GATEWAY, contact=gateway.contact())],
            [local_route("a", NAME, app.port, certificate, RouteKind.HTTPS)],
        )
        await pair.forward(pair.target())
        yield pair


async def ended(reader: asyncio.StreamReader) -> bytes:
    """What came until the other side closed; fails if it does not."""
    async with asyncio.timeout(15):
        try:
            return await reader.read(-1)
        except OSError:
            return b""


async def exchange(pair: Pair, sent: bytes) -> bytes:
    """Everything that comes back over TLS for `sent`, until the front closes."""
    reader, writer = await pair.tls()
    try:
        writer.write(sent)
        return await ended(reader)
    finally:
        writer.transport.abort()


@pytest.mark.parametrize("greeting", [b"", b"\x16\x03\x01\x02\x00\x01", b"\x16"])
async def test_client_that_never_finishes_its_hello_is_closed(pair: Pair, greeting: bytes) -> None:
    reader, writer = await pair.raw()
    writer.write(greeting)
    assert await ended(reader) == b""
    writer.transport.abort()


async def test_client_that_drips_its_hello_is_closed(pair: Pair) -> None:
    reader, writer = await pair.raw()
    end = asyncio.create_task(ended(reader))
    writer.write(b"\x16\x03\x01\x20\x00\x01")
    while not end.done():
        writer.write(b"\x00")
        await asyncio.wait({end}, timeout=0.05)
    assert await end == b""
    writer.transport.abort()


async def test_drip_of_a_request_head_is_closed(pair: Pair) -> None:
    reader, writer = await pair.tls()
    end = asyncio.create_task(ended(reader))
    writer.write(b"GET / HTTP/1.1\r\nX: ")
    while not end.done():
        writer.write(b"x")
        await asyncio.wait({end}, timeout=0.05)
    assert await end == b""
    writer.transport.abort()


async def test_one_client_cannot_take_every_connection(pair: Pair) -> None:
    taken = [await pair.raw() for _ in range(QUICK.max_per_client)]
    reader, writer = await pair.raw()
    assert await ended(reader) == b""
    other, other_writer = await pair.tls()
    other_writer.write(f"GET / HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode())
    assert await other.readuntil(b"\r\n") == b"HTTP/1.1 200 OK\r\n"
    for _reader, open_writer in [*taken, (reader, writer), (other, other_writer)]:
        open_writer.transport.abort()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (
            b"POST / HTTP/1.1\r\nHost: app.example\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"400",
        ),
        (b"GET / HTTP/1.1\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: other.example\r\n\r\n", b"421"),
        (b"GET / HTTP/1.1\r\nHost: app.example\r\nX: " + b"x" * 70_000 + b"\r\n\r\n", b"431"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"505"),
        (b"POST / HTTP/1.1\r\nHost: app.example\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"400"),
        (b"\x00\xff\r\n\r\n", b"400"),
    ],
)
async def test_hostile_requests_get_an_answer_and_no_more(pair: Pair, sent: bytes, status: bytes) -> None:
    answer = await exchange(pair, sent + b"GET /second HTTP/1.1\r\nHost: app.example\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 " + status)
    assert answer.count(b"HTTP/1.1 %s " % status) == 1 and b"/second" not in answer


async def test_pipelined_requests_are_answered_in_order(pair: Pair) -> None:
    sent = b"".join(
        b"PUT /%d HTTP/1.1\r\nHost: app.example\r\nContent-Length: 3\r\n%s\r\nabc" % (n, last)
        for n, last in ((1, b""), (2, b""), (3, b"Connection: close\r\n"))
    )
    answer = await exchange(pair, sent)
    assert [answer.find(b'"path": "/%d"' % n) for n in (1, 2, 3)] == sorted(
        answer.find(b'"path": "/%d"' % n) for n in (1, 2, 3)
    )
    assert answer.count(b"HTTP/1.1 200 OK") == 3


async def test_app_that_is_down_is_waited_for_and_then_owned_up_to(pair: Pair) -> None:
    await pair.device.serve(
        [Peer(device=GATEWAY, contact=pair.gateway.contact())],
        [local_route("a", NAME, free_port(), pair.certificate, RouteKind.HTTPS)],
    )
    answer = await exchange(pair, b"GET / HTTP/1.1\r\nHost: app.example\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 502 ")


@pytest.mark.parametrize("wrong", ["token", "gateway", "nothing"])
async def test_device_lets_no_pretender_in(pair: Pair, wrong: str) -> None:
    contact = pair.device.contact()
    header = proxy.Header(
        client=("192.0.2.1", 1),
        route=NAME,
        token=bytes(32) if wrong == "token" else bytes.fromhex(contact["token"]),
        gateway="f" * 20 if wrong == "gateway" else GATEWAY,
    )
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    reader, writer = await asyncio.open_connection("127.0.0.1", int(contact["port"]))
    writer.write(b"" if wrong == "nothing" else proxy.encode(header))
    with pytest.raises((OSError, EOFError)):
        await writer.start_tls(context, server_hostname=NAME)
    writer.transport.abort()
    del reader


async def test_foreign_address_is_not_let_in(pair: Pair) -> None:
    contact = pair.device.contact()
    header = proxy.Header(client=None, token=bytes.fromhex(contact["token"]), gateway=GATEWAY)
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", int(contact["port"]), local_addr=("127.0.0.7", 0)
    )
    writer.write(proxy.encode(header))
    assert await ended(reader) == b""
    writer.transport.abort()


async def test_secrets_stay_out_of_sight(pair: Pair) -> None:
    contact = pair.device.contact()
    header = proxy.Header(client=None, token=bytes.fromhex(contact["token"]))
    assert contact["token"] not in repr(header) + repr(pair.device._contact)
    assert "PRIVATE" not in repr(pair.certificate)


async def test_token_and_port_survive_a_restart(tmp_path: Path) -> None:
    async with real_context(tmp_path) as context:
        async with open_direct(context, QUICK) as first:
            before = first.contact()
        async with open_direct(context, QUICK) as second:
            assert second.contact() == before
        assert (context.state_dir / "token").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("key", ["device_port", "https_port", "http_port"])
async def test_configured_port_in_use_is_named(tmp_path: Path, key: str) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        async with real_context(tmp_path) as context:
            with pytest.raises(BackendError, match=f"port {port} of 127.0.0.1 .* in use"):
                async with open_direct(context, dataclasses.replace(QUICK, **{key: port})):
                    pass


async def test_address_that_others_cannot_use_is_refused(tmp_path: Path) -> None:
    async with real_context(tmp_path) as context:
        with pytest.raises(Misconfigured, match="advertise"):
            async with open_direct(context, DirectConfig(listen="0.0.0.0")):
                pass


async def test_bad_routes_do_not_keep_good_ones_from_being_served(pair: Pair) -> None:
    gateways = [Peer(device=GATEWAY, contact=pair.gateway.contact())]
    good = local_route("a", NAME, 1, pair.certificate, RouteKind.HTTPS)
    with pytest.raises(
        InvalidInput, match=r"certificate of route b\.example.*'not a name' is not a DNS name"
    ):
        await pair.device.serve(
            gateways,
            [
                local_route("b", "b.example", 1, Certificate(chain=b"no", key=b"no"), RouteKind.HTTPS),
                local_route("c", "not a name", 1, pair.certificate, RouteKind.HTTPS),
                good,
            ],
        )
    with pytest.raises(Conflict, match=r"app a .*app b|app a and app b"):
        await pair.device.serve(
            gateways, [good, local_route("b", NAME, 1, pair.certificate, RouteKind.HTTPS)]
        )
    _reader, writer = await pair.tls()
    writer.transport.abort()


async def test_name_wanted_twice_stays_with_the_first(pair: Pair) -> None:
    second = dataclasses.replace(pair.target(), app="b", device="")
    with pytest.raises(Conflict, match="app a and app b"):
        await pair.forward(pair.target(), second)
    _reader, writer = await pair.tls()
    writer.transport.abort()


async def test_port_80_only_redirects(tmp_path: Path) -> None:
    port, https = free_port(), free_port()
    async with (
        real_context(tmp_path) as context,
        open_direct(context, dataclasses.replace(QUICK, http_port=port, https_port=https)) as gateway,
    ):
        await gateway.forward([], [Target(group="g", app="a", name=NAME, kind=RouteKind.HTTPS, device="")])
        answers = []
        for host in (b"App.example:80", b"other.example", b"x\r\nX: y\n"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"PUT /a%2f?b=c HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")
            writer.write_eof()
            answers.append(await ended(reader))
            writer.close()
    assert answers[0].startswith(b"HTTP/1.1 308 ")
    assert f"\r\nLocation: https://{NAME}:{https}/a%2f?b=c\r\n".encode() in answers[0]
    assert answers[1].startswith(b"HTTP/1.1 421 ")
    assert answers[2].startswith(b"HTTP/1.1 400 ")


async def test_half_open_connection_ends(pair: Pair) -> None:
    """A TCP service that never ends its side, after the client has ended its own."""
    held = asyncio.Event()

    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(-1)
        await held.wait()
        writer.close()

    server = await asyncio.start_server(mute, "127.0.0.1", 0)
    public = free_port()
    await pair.device.serve(
        [Peer(device=GATEWAY, contact=pair.gateway.contact())],
        [local_route("t", f":{public}", server.sockets[0].getsockname()[1], None, RouteKind.TCP)],
    )
    await pair.forward(dataclasses.replace(pair.target(), name=f":{public}", kind=RouteKind.TCP))
    reader, writer = await asyncio.open_connection("127.0.0.1", public)
    writer.write_eof()
    assert await ended(reader) == b""
    writer.close()
    held.set()
    server.close()


async def test_peer_that_does_not_answer_is_down(pair: Pair) -> None:
    """Its kernel still accepts connections; its agent does not answer."""
    with socket.socket() as frozen:
        frozen.bind(("127.0.0.1", 0))
        frozen.listen()
        contact = {**pair.device.contact(), "port": str(frozen.getsockname()[1])}
        quick = dataclasses.replace(QUICK, connect_timeout=0.2)
        pair.gateway._gateway._config = quick
        await pair.gateway.forward([Peer(device=DEVICE, contact=contact)], [])
        async with asyncio.timeout(15):
            while not (links := await pair.gateway.links())[0].detail:
                await asyncio.sleep(0.05)
        assert not links[0].up and "does not answer" in links[0].detail


def _has_both_families() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::", 0))
            return True
    except OSError:
        return False


@pytest.mark.skipif(not _has_both_families(), reason="no IPv6 here")
async def test_socket_for_both_families_knows_a_gateway_by_its_ipv4_address(tmp_path: Path) -> None:
    both = dataclasses.replace(QUICK, listen="::", advertise="127.0.0.1")
    async with (
        real_context(tmp_path / "g", device=GATEWAY) as front,
        real_context(tmp_path / "d", device=DEVICE) as back,
        open_direct(front, both) as gateway,
        open_direct(back, both) as device,
    ):
        await device.serve([Peer(device=GATEWAY, contact=gateway.contact())], [])
        await gateway.forward([Peer(device=DEVICE, contact=device.contact())], [])
        async with asyncio.timeout(15):
            while not all(link.up for link in [*await gateway.links(), *await device.links()]):
                await asyncio.sleep(0.05)
