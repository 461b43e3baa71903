"""Contract suite for transports. An author writes one fixture:

    class TestMine(TransportContract):
        @pytest.fixture
        async def backend(self, tmp_path):
            ...
            yield Bed(gateway_id=..., gateway=..., devices={...}, https=..., tcp_port=..., udp_port=..., hold=2.0)

Every test uses real sockets and real TLS clients; the apps behind the devices listen on loopback. That a gateway does not
decrypt shows in that it is never given a key: the suite hands certificates to `serve` only, on devices.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import socket
import ssl
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any, ClassVar

import aiohttp
import pytest

from fractal.api.errors import BackendError, NotSupported
from fractal.api.transport import (
    Certificate,
    RouteKind,
    SupportsChallenge,
    SupportsProbe,
)
from fractal.shell.entropy import SystemEntropy
from fractal.testing.suite import Contract, requires
from fractal.testing.transport_parts import (
    FLOOD,
    GROUP,
    Bed,
    Client,
    Town,
    datagram_service,
    echo_service,
    held,
    presented,
    refused,
    target,
    trust,
    web_app,
    web_client,
)

HTTPS, TCP, UDP = RouteKind.HTTPS, RouteKind.TCP, RouteKind.UDP


def _der(certificate: Certificate) -> bytes:
    return ssl.PEM_cert_to_DER_cert(certificate.chain.decode())


class TransportContract(Contract[Bed]):
    """What every transport must do, whatever carries the bytes."""

    optional: ClassVar[Mapping[str, type[Any]]] = {
        "SupportsChallenge": SupportsChallenge,
        "SupportsProbe": SupportsProbe,
    }

    def opened(self, backend: Bed) -> Iterable[object]:
        """Gateway and devices are one kind of object."""
        return (backend.gateway, *backend.devices.values())

    @pytest.fixture
    async def town(self, backend: Bed) -> AsyncIterator[Town]:
        """Two apps, settled."""
        # Late, as the suite may be imported where the optional parts of a certificate's making are not installed.
        from fractal.api.certificates import make_certificate

        entropy = SystemEntropy()
        one, two = (make_certificate(name, entropy, 1_790_000_000_000) for name in backend.names)
        async with web_app("first", backend.app_host) as first, web_app("second", backend.app_host) as second:
            ids = tuple(backend.devices)
            assert len(ids) == 2, "a bed has two devices"
            town = Town(backend, (ids[0], ids[1]), (first, second), (one, two))
            await town.settle()
            yield town

    @pytest.fixture
    async def client(self, town: Town) -> AsyncIterator[Client]:
        async with web_client(town.bed, *town.certificates) as client:
            yield client

    # What a device publishes

    async def test_contact_is_plain_text_and_stable(self, backend: Bed) -> None:
        """A contact goes into the log whenever it changes: it must not change by itself."""
        for device in [backend.gateway, *backend.devices.values()]:
            contact = device.contact()
            assert all(isinstance(text, str) for pair in contact.items() for text in pair)
            assert device.contact() == contact

    @requires("SupportsProbe")
    async def test_probe_gets_through_exactly_when_a_client_does(self, town: Town) -> None:
        """To the end of TLS on the serving device; a gateway that merely listens is not enough."""
        gateway, device = town.bed.gateway, town.bed.devices[town.ids[0]]
        assert isinstance(gateway, SupportsProbe) and isinstance(device, SupportsProbe)
        async with asyncio.timeout(2 * town.bed.hold + town.bed.patience):
            await gateway.probe(town.names[0], HTTPS)
            await town.serve(0, [])
            with pytest.raises(BackendError, match=town.names[0]):
                await gateway.probe(town.names[0], HTTPS)
            await gateway.probe(town.names[1], HTTPS)
            with pytest.raises(NotSupported):
                await device.probe(town.names[0], HTTPS)

    @requires("SupportsChallenge")
    async def test_challenge_is_answered_to_those_who_ask_for_it_only(self, town: Town) -> None:
        """Before the first certificate is there, beside it, and not any more afterwards."""
        from fractal.api.certificates import make_certificate

        device, name = town.bed.devices[town.ids[0]], town.names[0]
        assert isinstance(device, SupportsChallenge)
        proof = make_certificate(name, SystemEntropy(), 1_790_000_000_000)
        await town.serve(0, [])
        await device.challenge(GROUP, "app0", name, proof)
        assert await presented(town.bed, name, ["acme-tls/1"]) == _der(proof)
        await town.serve(0, town.routes(0))
        for _ in range(2):
            assert await presented(town.bed, name, ["acme-tls/1"]) == _der(proof)
            for others in ([], ["http/1.1"], ["http/1.1", "acme-tls/1"]):
                assert await presented(town.bed, name, others) == _der(town.certificates[0])
            assert await presented(town.bed, town.names[1], ["acme-tls/1"]) != _der(proof)
        await device.challenge(GROUP, "app0", name, None)
        assert await presented(town.bed, name, ["acme-tls/1"]) != _der(proof)
        assert await presented(town.bed, name, []) == _der(town.certificates[0])

    # The way to an app

    async def test_request_reaches_the_app_under_its_own_certificate(
        self, town: Town, client: Client
    ) -> None:
        """Each name leads to its own app, and the client verified the app's own certificate."""
        assert (await client.tell(town.names[0]))["app"] == "first"
        assert (await client.tell(town.names[1]))["app"] == "second"
        context = trust(town.certificates[0])
        reader, writer = await asyncio.open_connection(
            *town.bed.https, ssl=context, server_hostname=town.names[0]
        )
        shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.transport.abort()
        del reader
        assert shown == _der(town.certificates[0])

    async def test_app_learns_the_client_and_not_what_the_client_claims(
        self, town: Town, client: Client
    ) -> None:
        """On every request of a connection, and however the forged field is spelt."""
        forged = {
            "X-Forwarded-For": "192.0.2.66",
            "X_Forwarded_For": "192.0.2.66",
            "Forwarded": "for=192.0.2.66",
        }
        for _ in range(3):
            told = await client.tell(town.names[0], headers=forged)
            seen = {name.lower(): value for name, value in told["headers"]}
            assert "192.0.2.66" not in json.dumps(told["headers"])
            assert seen["x-forwarded-for"] == town.bed.client
            assert seen["x-forwarded-proto"] == "https"
            port = town.bed.https[1]
            assert seen["x-forwarded-host"] == (town.names[0] if port == 443 else f"{town.names[0]}:{port}")
            assert seen["host"] == seen["x-forwarded-host"]

    @pytest.mark.parametrize("method", ["PROPFIND", "REPORT", "MKCALENDAR", "PUT", "DELETE", "OPTIONS"])
    async def test_any_method_with_a_body_goes_through(self, town: Town, client: Client, method: str) -> None:
        """CalDAV and WebDAV use many."""
        body = b"<x/>" * 1000
        path = "/a%2Fb/%C3%A9?q=%20%25&r"
        told = await client.tell(
            town.names[0], path, method, data=body, headers={"Depth": "1", "If-Match": '"e"'}
        )
        assert (told["method"], told["length"]) == (method, len(body))
        assert told["sha256"] == hashlib.sha256(body).hexdigest()
        headers = [[key.lower(), value] for key, value in told["headers"]]
        assert ["depth", "1"] in headers and ["if-match", '"e"'] in headers

    async def test_large_bodies_pass_unchanged_both_ways(self, town: Town, client: Client) -> None:
        """8 MiB with a known length, and streamed in chunks."""
        body = SystemEntropy().bytes(8 << 20)

        async def pieces() -> AsyncIterator[bytes]:
            for start in range(0, len(body), 100_001):
                yield body[start : start + 100_001]

        for data in (io.BytesIO(body), pieces()):
            async with client.session.put(client.url(town.names[0], "/echo"), data=data) as response:
                assert hashlib.sha256(await response.read()).digest() == hashlib.sha256(body).digest()

    async def test_compressed_bodies_stay_compressed(self, town: Town, client: Client) -> None:
        """Nobody on the way looks into a body."""
        body = b"\x1f\x8b not really gzip"
        async with client.session.put(
            client.url(town.names[0], "/echo"), data=body, headers={"Content-Encoding": "gzip"}
        ) as response:
            assert await response.read() == body

    async def test_body_may_wait_for_a_continue(self, town: Town, client: Client) -> None:
        """Interim responses pass."""
        told = await client.tell(town.names[0], "/", "PUT", data=b"x" * 70_000, expect100=True)
        assert told["length"] == 70_000

    async def test_websocket_goes_both_ways(self, town: Town, client: Client) -> None:
        """And stays open."""
        async with client.session.ws_connect(client.url(town.names[0], "/ws")) as ws:
            for text in ("a", "b" * 100_000):
                await ws.send_str(text)
                assert await ws.receive_str(timeout=10) == f"first: {text}"

    # Names

    @pytest.mark.parametrize("spelling", ["ONE.Example", "one.example."])
    async def test_name_may_be_spelt_otherwise(self, town: Town, spelling: str) -> None:
        """Upper case and a trailing dot are the same name."""
        if town.names[0] != "one.example":
            spelling = town.names[0].upper() + ("." if spelling.endswith(".") else "")
        async with held(town.bed, town.names[0], town.certificates[0], sni=spelling) as connection:
            assert (await connection.get())[0] == 200

    async def test_unknown_and_missing_names_reach_nobody(self, town: Town) -> None:
        """No certificate of anybody is shown."""
        for name in ("other.example", None):
            assert await refused(town.bed, name)
        assert not town.apps[0].paths and not town.apps[1].paths

    async def test_foreign_host_is_misdirected(self, town: Town) -> None:
        """421, so that a browser asks again on a connection of its own (RFC 9110, 15.5.20)."""
        async with held(town.bed, town.names[0], town.certificates[0]) as connection:
            assert (await connection.get(host=town.names[1]))[0] == 421
        assert not town.apps[0].paths and not town.apps[1].paths

    async def test_hello_may_come_byte_by_byte(self, town: Town) -> None:
        """Each byte of the handshake in a segment of its own."""
        outgoing, incoming = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = trust(town.certificates[0]).wrap_bio(incoming, outgoing, server_hostname=town.names[0])
        reader, writer = await asyncio.open_connection(*town.bed.https)
        try:
            async with asyncio.timeout(town.bed.patience):
                while True:
                    try:
                        tls.do_handshake()
                        break
                    except ssl.SSLWantReadError:
                        for byte in outgoing.read():
                            writer.write(bytes([byte]))
                            await writer.drain()
                        incoming.write(await reader.read(1 << 16))
            assert tls.getpeercert()
        finally:
            writer.transport.abort()

    async def test_strangers_disturb_nobody(self, town: Town, client: Client) -> None:
        """Garbage and clients that say nothing, while others are served."""
        writers = []
        try:
            for greeting in (
                b"",
                b"\x16",
                b"\x16\x03\x01\x40\x00\x01",
                b"GET / HTTP/1.0\r\n\r\n",
                b"\xff" * 70_000,
            ):
                for _ in range(5):
                    _reader, writer = await asyncio.open_connection(*town.bed.https)
                    writer.write(greeting)
                    writers.append(writer)
            assert (await client.tell(town.names[0]))["app"] == "first"
        finally:
            for writer in writers:
                writer.transport.abort()

    # The desired state

    async def test_applying_the_same_again_disturbs_nothing(self, town: Town) -> None:
        """An agent does so every few seconds."""
        async with held(town.bed, town.names[0], town.certificates[0]) as connection:
            assert (await connection.get())[0] == 200
            await town.settle()
            assert (await connection.get())[0] == 200

    async def test_other_routes_come_and_go_without_disturbing(self, town: Town) -> None:
        """Removing, adding and moving one leaves a connection of another alone."""
        one, two = town.ids
        async with held(town.bed, town.names[0], town.certificates[0]) as connection:
            assert (await connection.get())[0] == 200
            await town.forward(town.target(0, one))
            await town.serve(1, [])
            await town.serve(0, town.routes(0) + town.routes(1))
            await town.forward(town.target(0, one), town.target(1, one, epoch=2))
            assert (await connection.get())[0] == 200
            await town.serve(0, town.routes(0))
            await town.forward(town.target(0, one, epoch=5), town.target(1, two))
            assert (await connection.get())[0] == 200

    async def test_removed_target_ends(self, town: Town) -> None:
        """Old connections too."""
        async with held(town.bed, town.names[0], town.certificates[0]) as connection:
            assert (await connection.get())[0] == 200
            await town.forward(town.target(1, town.ids[1]))
            assert await connection.closed()
        assert await refused(town.bed, town.names[0], town.certificates[0])

    async def test_removed_route_ends(self, town: Town) -> None:
        """A device that no longer serves an app closes what leads to it."""
        async with held(town.bed, town.names[0], town.certificates[0]) as connection:
            assert (await connection.get())[0] == 200
            await town.serve(0, [])
            assert await connection.closed()

    @pytest.mark.parametrize("asked", [True, False], ids=["amid its answer", "amid its greeting"])
    async def test_removed_route_finishes_what_is_under_way(self, town: Town, asked: bool) -> None:
        """A planned move takes the route away before it stops the app: nobody's request is cut off, and nobody new comes."""

        async def slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            await asyncio.sleep(0.3)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
            writer.close()

        server = await asyncio.start_server(slowly, town.bed.app_host, 0)
        try:
            await town.serve(0, [town.web_route(0, server.sockets[0].getsockname()[1])])
            async with held(town.bed, town.names[0], town.certificates[0]) as connection:
                asking = asyncio.create_task(connection.get()) if asked else None
                await asyncio.sleep(0.1)
                removing = asyncio.create_task(town.serve(0, []))
                await asyncio.sleep(0.05)
                assert await (asking or connection.get()) == (200, b"ok")
                await removing
            assert await refused(town.bed, town.names[0], town.certificates[0])
        finally:
            server.close()

    async def test_stranger_to_the_device_is_not_let_in(self, town: Town) -> None:
        """A gateway that the device was not given, or not any more, reaches nothing, and its connections end."""
        async with held(town.bed, town.names[0], town.certificates[0]) as connection:
            assert (await connection.get())[0] == 200
            await town.bed.devices[town.ids[0]].serve([], town.routes(0))
            assert await connection.closed()
        assert await refused(town.bed, town.names[0], town.certificates[0])

    # Changing hands

    async def test_switch_leads_to_the_new_device_and_ends_old_connections(self, town: Town) -> None:
        """The app's second copy answers; the connection to the first one is closed."""
        moved = [town.web_route(0, town.apps[1].port)]
        async with held(town.bed, town.names[0], town.certificates[0]) as old:
            assert json.loads((await old.get())[1])["app"] == "first"
            await town.serve(1, moved)
            await town.forward(town.target(0, town.ids[1], epoch=2))
            assert await old.closed()
        async with held(town.bed, town.names[0], town.certificates[0]) as new:
            assert json.loads((await new.get())[1])["app"] == "second"

    async def test_connection_is_held_while_the_app_changes_hands(self, town: Town) -> None:
        """A request made while there is no device is answered by the next one."""
        await town.forward(town.target(0, ""))
        async with web_client(town.bed, town.certificates[0]) as client:
            waiting = asyncio.create_task(client.tell(town.names[0]))
            await asyncio.wait({waiting}, timeout=0.3)
            assert not waiting.done()
            moved = [town.web_route(0, town.apps[1].port)]
            await town.serve(1, moved)
            await town.forward(town.target(0, town.ids[1], epoch=2))
            assert (await waiting)["app"] == "second"

    async def test_connection_is_not_held_for_ever(self, town: Town) -> None:
        """After the gateway's hold it is closed."""
        await town.forward(town.target(0, ""))
        assert await refused(town.bed, town.names[0], town.certificates[0])

    async def test_device_that_does_not_serve_yet_is_waited_for(self, town: Town) -> None:
        """The gateway may learn of a takeover before the new owner's app is up."""
        await town.forward(town.target(0, town.ids[1], epoch=2))
        async with web_client(town.bed, town.certificates[0]) as client:
            waiting = asyncio.create_task(client.tell(town.names[0]))
            await asyncio.wait({waiting}, timeout=0.3)
            await town.serve(1, [town.web_route(0, town.apps[1].port)])
            assert (await waiting)["app"] == "second"

    # Ports

    async def test_tcp_route_carries_bytes_and_their_end(self, town: Town) -> None:
        """Either side may end its half first."""
        async with echo_service(town.bed.app_host) as port:
            name = f":{town.bed.tcp_port}"
            await town.serve(0, [town.route("app2", name, port, TCP), *town.routes(0)])
            await town.forward(
                target(town.bed, "app2", name, town.ids[0], TCP),
                town.target(0, town.ids[0]),
                town.target(1, ""),
            )
            async with asyncio.timeout(town.bed.patience):
                reader, writer = await asyncio.open_connection(town.bed.https[0], town.bed.tcp_port)
                text = b"some text " * 50_000
                writer.write(text)
                writer.write_eof()
                answer = await reader.read(-1)
                writer.close()
            assert answer == text.upper()
            await town.forward(town.target(0, town.ids[0]))
            with pytest.raises(OSError):
                await asyncio.open_connection(town.bed.https[0], town.bed.tcp_port)

    async def test_udp_route_carries_datagrams_of_each_client(self, town: Town) -> None:
        """Answers reach the one who asked."""
        loop = asyncio.get_running_loop()
        async with datagram_service(town.bed.app_host) as port:
            name = f":{town.bed.udp_port}"
            await town.serve(0, [town.route("app3", name, port, UDP)])
            await town.forward(target(town.bed, "app3", name, town.ids[0], UDP))
            clients = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(3)]
            try:
                for index, client in enumerate(clients):
                    client.setblocking(False)
                    client.connect((town.bed.https[0], town.bed.udp_port))
                    client.send(b"from %d" % index)
                async with asyncio.timeout(town.bed.patience):
                    answers = [await loop.sock_recv(client, 2048) for client in clients]
            finally:
                for client in clients:
                    client.close()
        assert answers == [b"FROM 0", b"FROM 1", b"FROM 2"]

    async def test_port_in_use_is_named_and_spoils_nothing_else(self, town: Town, client: Client) -> None:
        """The other targets of the same call stand."""
        with town.bed.taken(town.bed.https[0]) as port:
            with pytest.raises(BackendError, match=str(port)):
                await town.forward(
                    target(town.bed, "app2", f":{port}", town.ids[0], TCP), town.target(0, town.ids[0])
                )
            assert (await client.tell(town.names[0]))["app"] == "first"

    # Health and limits

    async def test_links_tell_the_living_from_the_dead(self, town: Town, client: Client) -> None:
        """A peer that answers is up, one that cannot be reached is not."""
        await client.tell(town.names[0])
        async with asyncio.timeout(town.bed.patience):
            while not all(link.up for link in await town.bed.gateway.links()):  # noqa: ASYNC110 - looked at, as users do
                await asyncio.sleep(0.05)
        assert {link.device for link in await town.bed.gateway.links()} == set(town.ids)
        assert town.bed.gateway_id in {link.device for link in await town.bed.devices[town.ids[0]].links()}
        await town.bed.gateway.forward([], [])
        assert not await town.bed.gateway.links()

    async def test_slow_reader_holds_back_the_app(self, town: Town) -> None:
        """What the client does not take stays with the app: nobody on the way keeps it all."""
        async with (
            web_client(town.bed, town.certificates[0]) as client,
            client.session.get(client.url(town.names[0], "/flood")) as response,
        ):
            before = -1
            while before != town.apps[0].flooded:
                before = town.apps[0].flooded
                await asyncio.sleep(1)
            assert 0 < before < FLOOD
            response.close()

    async def test_truncated_answer_is_not_taken_for_whole(self, town: Town) -> None:
        """An app that dies amid a body must not look as if it had finished."""

        async def die(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(die, town.bed.app_host, 0)
        port = server.sockets[0].getsockname()[1]
        try:
            await town.serve(0, [town.web_route(0, port)])
            async with web_client(town.bed, town.certificates[0]) as client:
                with pytest.raises(aiohttp.ClientError):
                    async with client.session.get(client.url(town.names[0])) as response:
                        await response.read()
        finally:
            server.close()
