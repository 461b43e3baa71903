"""Who reaches what, and what strangers send."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
from fractal_wireguard.addresses import ENTRY_PORT, HEARTBEAT_PORT, interface_name, of_app, of_device
from fractal_wireguard.testing import (
    CLIENT6,
    GATEWAY,
    GATEWAY6,
    Streets,
    WireguardBed,
    wireguard_bed,
    wireguard_town,
)

from fractal.testing.transport_parts import GROUP, Town, held, trust, web_client

ASK = b"fractal?" + bytes(8)


def connected(bed: WireguardBed, role: str, host: str, port: int, source: str = "") -> socket.socket | None:
    """A TCP connection made in a namespace; None if there is none within two seconds."""
    with bed.streets.inside(role):
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    sock.settimeout(2)
    try:
        if source:
            sock.bind((source, 0))
        sock.connect((host, port))
    except OSError:
        sock.close()
        return None
    return sock


def hangs_up(bed: WireguardBed, role: str, host: str, port: int) -> bool:
    """Whether a TCP connection is made and ended by the other side without a byte."""
    with bed.streets.inside(role):
        sock = socket.socket(socket.AF_INET6)
    with sock:
        sock.settimeout(bed.patience)
        try:
            sock.connect((host, port))
            return sock.recv(1) == b""
        except ConnectionResetError:
            return True


def asks(bed: WireguardBed, role: str, source: str, target: str) -> bool:
    """Whether a heartbeat's question from an address is answered within a second. Three tries, as a datagram may be lost."""
    with bed.streets.inside(role):
        sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    with sock:
        sock.bind((source, 0))
        sock.settimeout(1)
        for _ in range(3):
            sock.sendto(ASK, (target, HEARTBEAT_PORT))
            try:
                return sock.recv(100).startswith(b"fractal!")
            except TimeoutError:
                continue
    return False


async def off(function: Callable[..., object], *arguments: object) -> object:
    return await asyncio.to_thread(function, *arguments)


async def up(town: Town) -> None:
    async with web_client(town.bed, *town.certificates) as client:
        for name in town.names:
            await client.tell(name)


async def test_client_by_ipv6_is_served_and_known(town: Town, bed: WireguardBed) -> None:
    context = trust(town.certificates[0])
    reader, writer = await asyncio.open_connection(
        GATEWAY6, 443, ssl=context, server_hostname=town.names[0], local_addr=(CLIENT6, 0)
    )
    writer.write(f"GET / HTTP/1.1\r\nHost: {town.names[0]}\r\nConnection: close\r\n\r\n".encode())
    told = json.loads((await reader.read(-1)).partition(b"\r\n\r\n")[2])
    writer.close()
    assert {k.lower(): v for k, v in told["headers"]}["x-forwarded-for"] == CLIENT6


async def test_http_is_only_sent_to_https(town: Town, bed: WireguardBed) -> None:
    async with web_client(bed, *town.certificates) as client:
        for host, status in ((town.names[0], 308), (town.names[0].upper(), 308), ("other.example", 421)):
            async with client.session.get(
                f"http://{GATEWAY}/a?b=%20", headers={"Host": host}, allow_redirects=False
            ) as response:
                assert response.status == status
                if status == 308:
                    assert response.headers["Location"] == f"https://{town.names[0]}/a?b=%20"
    assert not town.apps[0].paths


async def test_http_two_is_spoken(town: Town, bed: WireguardBed) -> None:
    """Between client and front; and HTTP/3 is not offered, as it does not come through a gateway."""
    context = trust(town.certificates[0])
    context.set_alpn_protocols(["h2", "http/1.1"])
    _, writer = await asyncio.open_connection(GATEWAY, 443, ssl=context, server_hostname=town.names[0])
    assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
    writer.transport.abort()


@pytest.mark.parametrize("size", [3000, 12000])
async def test_large_hello_in_two_segments(town: Town, bed: WireguardBed, size: int) -> None:
    """Post-quantum key shares make hellos of more than one segment."""
    outgoing, incoming = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = trust(town.certificates[0])
    filler = [f"{number:03d}".ljust(100, "x") for number in range(size // 101)]
    context.set_alpn_protocols([*filler, "http/1.1"])
    tls = context.wrap_bio(incoming, outgoing, server_hostname=town.names[0])
    reader, writer = await asyncio.open_connection(GATEWAY, 443)
    try:
        with pytest.raises(ssl.SSLWantReadError):
            tls.do_handshake()
        hello = outgoing.read()
        assert len(hello) > size
        writer.write(hello[: size // 2])
        await writer.drain()
        await asyncio.sleep(0.3)
        writer.write(hello[size // 2 :])
        async with asyncio.timeout(bed.hold + bed.patience):
            while True:
                incoming.write(await reader.read(1 << 16))
                try:
                    tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    writer.write(outgoing.read())
        assert tls.getpeercert()
    finally:
        writer.transport.abort()


async def test_device_cannot_speak_from_anothers_address(town: Town, bed: WireguardBed) -> None:
    """Neither from the other device's nor from its app's: the gateway knows by the key who may."""
    await up(town)
    interface = interface_name(town.ids[1])
    gateway = of_device(bed.gateway_id).v6
    foreign = (of_device(town.ids[0]).v6, of_app(GROUP, "app0").v6)
    for address in foreign:
        bed.streets.ip("homeb", f"address add {address}/128 dev {interface} nodad\n")
    assert await off(asks, bed, "homeb", of_device(town.ids[1]).v6, gateway), "the way itself is fine"
    for address in foreign:
        assert not await off(asks, bed, "homeb", address, gateway)


async def test_homes_do_not_reach_each_other_through_the_gateway(town: Town, bed: WireguardBed) -> None:
    """Though the gateway forwards, as Docker makes it, and both would let the other in: its packet filter alone holds."""
    await up(town)
    bed.streets.run("gateway", "sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")
    key = bed.gateway.contact()["key"]
    for index, role in enumerate(("homea", "homeb")):
        interface = interface_name(town.ids[index])
        bed.streets.run(role, "wg", "set", interface, "peer", key, "allowed-ips", "::/0")
        bed.streets.run(role, "nft", "delete", "table", "inet", f"fractal_{interface}")
    one, two = (of_device(device).v6 for device in town.ids)

    def known(address: str) -> bool:
        return bool(address)

    bed.remotes["homeb"].transport.heartbeat._known = known
    assert not await off(asks, bed, "homea", one, two)
    bed.streets.run("gateway", "nft", "delete", "table", "inet", f"fractal_{interface_name(bed.gateway_id)}")
    assert await off(asks, bed, "homea", one, two), "without the filter it would have passed"


async def test_only_the_gateway_may_say_who_a_client_is(town: Town, bed: WireguardBed) -> None:
    """A PROXY header from the house's own network, or from another device, is not even read."""
    await up(town)
    app = of_app(GROUP, "app0").v6
    # Somebody on the wire of the home knows the app's address and sends there.
    bed.streets.ip("client", "address add fd00:77::1/64 dev appsa nodad\n")
    bed.streets.ip("homea", "address add fd00:77::2/64 dev apps nodad\n")
    bed.streets.ip("client", f"route add {app}/128 via fd00:77::2 dev appsa\n")
    try:
        for host in (app, "fd00:77::2"):
            assert await off(connected, bed, "client", host, ENTRY_PORT) is None
        sock = await off(connected, bed, "gateway", app, ENTRY_PORT, of_device(bed.gateway_id).v6)
        assert isinstance(sock, socket.socket), "from the gateway it is open"
        sock.close()
        # Without the packet filter the front itself hangs up, before it reads a byte.
        bed.streets.run("homea", "nft", "delete", "table", "inet", f"fractal_{interface_name(town.ids[0])}")
        assert await off(hangs_up, bed, "client", "fd00:77::2", ENTRY_PORT)
    finally:
        bed.streets.ip("client", "address delete fd00:77::1/64 dev appsa\n")
        bed.streets.ip("homea", "address delete fd00:77::2/64 dev apps\n")


async def test_gateway_reaches_nothing_else_on_a_device(town: Town, bed: WireguardBed) -> None:
    """Not what listens on every address of the device, such as SSH."""
    await up(town)
    with bed.streets.inside("homea"):
        other = socket.socket(socket.AF_INET6)
    with other:
        other.bind(("::", 0))
        other.listen()
        port = other.getsockname()[1]
        for address in (of_app(GROUP, "app0").v6, of_device(town.ids[0]).v6):
            assert await off(connected, bed, "gateway", address, port) is None
        near = await off(connected, bed, "homea", "::1", port)
        assert isinstance(near, socket.socket)
        near.close()


async def test_traffic_between_gateway_and_home_is_unreadable(town: Town, bed: WireguardBed) -> None:
    """What passes the provider's wire is WireGuard's, to the gateway's one port, and nothing else."""
    with bed.streets.inside("nata"):
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    with tap:
        tap.bind(("wan", 0))
        tap.settimeout(0.5)
        mark = b"incompressible-canary-47c1b9"
        async with (
            web_client(bed, *town.certificates) as client,
            client.session.put(client.url(town.names[0], "/echo"), data=mark) as response,
        ):
            assert await response.read() == mark
        packets = []
        try:
            while True:
                packets.append(tap.recv(65536))
        except TimeoutError:
            pass
    ip = [packet[14:] for packet in packets if packet[12:14] == b"\x08\x00"]
    assert len(ip) > 10
    assert not any(mark in packet or town.names[0].encode() in packet for packet in packets)
    for packet in ip:
        assert packet[9] == socket.IPPROTO_UDP
        ports = {int.from_bytes(packet[20:22], "big"), int.from_bytes(packet[22:24], "big")}
        assert 51820 in ports


@pytest.mark.parametrize(("segment", "passes"), [(1172, True), (1360, False)])
async def test_narrow_way_whose_router_keeps_silent(
    tmp_path: Path, made_streets: Streets, segment: int, passes: bool
) -> None:
    """1300 bytes and no ICMP, as with some providers: our default passes, a common one would not."""
    for role, device in (("nata", "wan"), ("client", "tonata"), ("natb", "wan"), ("client", "tonatb")):
        made_streets.ip(role, f"link set {device} mtu 1300\n")
    try:
        for role in ("nata", "natb"):
            made_streets.run(role, "nft", "-f", "-", stdin=_SILENT)
        mtu = 1280 if passes else 1420
        async with (
            wireguard_bed(tmp_path, made_streets, mtu=mtu, segment=segment) as bed,
            wireguard_town(bed) as town,
            web_client(bed, *town.certificates) as client,
        ):
            body = bytes(1 << 20)

            async def echoed() -> bytes:
                async with client.session.put(client.url(town.names[0], "/echo"), data=body) as response:
                    return await response.read()

            if passes:
                assert await echoed() == body
            else:
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(echoed(), 4)
    finally:
        for role, device in (("nata", "wan"), ("client", "tonata"), ("natb", "wan"), ("client", "tonatb")):
            made_streets.ip(role, f"link set {device} mtu 1500\n")
        for role in ("nata", "natb"):
            made_streets.run(role, "nft", "delete", "table", "inet", "silent")


_SILENT = """
table inet silent {
  chain out {
    type filter hook output priority filter;
    icmp type destination-unreachable drop
  }
}
"""


async def test_applying_again_changes_nothing_of_a_tunnel(town: Town, bed: WireguardBed) -> None:
    """Another device and another route are added, all is applied again: no new handshake, the connection lives."""
    await up(town)
    interface = interface_name(bed.gateway_id)

    def handshakes() -> list[str]:
        # In no order: the program keeps its peers in a hash table.
        return sorted(bed.streets.run("gateway", "wg", "show", interface, "latest-handshakes").splitlines())

    before = handshakes()
    rules = bed.streets.run("gateway", "nft", "-a", "list", "table", "inet", f"fractal_{interface}")
    async with held(bed, town.names[0], town.certificates[0]) as connection:
        assert (await connection.get())[0] == 200
        for _ in range(3):
            await town.settle()
        assert (await connection.get())[0] == 200
        assert handshakes() == before
        assert (
            bed.streets.run("gateway", "nft", "-a", "list", "table", "inet", f"fractal_{interface}") == rules
        )
        await town.serve(0, [*town.routes(0), *town.routes(1)])
        await town.forward(town.target(0, town.ids[0]))
        await town.forward(town.target(0, town.ids[0]), town.target(1, town.ids[0], epoch=2))
        assert (await connection.get())[0] == 200
        assert handshakes() == before
