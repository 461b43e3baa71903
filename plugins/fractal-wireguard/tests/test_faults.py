"""What users would lose when something moves, dies or comes back."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fractal_wireguard.addresses import interface_name, of_app
from fractal_wireguard.daemon import kill_orphans
from fractal_wireguard.testing import GATEWAY, Streets, WireguardBed, stream, wireguard_bed, wireguard_town

from fractal.api.errors import BackendError
from fractal.api.transport import RouteKind
from fractal.testing.transport_parts import GROUP, Town, datagram_service, held, target, web_client


@contextlib.asynccontextmanager
async def within(town: Town, what: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(3 * town.bed.patience):
            yield
    except TimeoutError:
        pytest.fail(f"not within {3 * town.bed.patience} s: {what}")


async def answered(town: Town, label: str = "first") -> None:
    """Until a request to the first name is answered by that app."""
    while True:
        with contextlib.suppress(OSError):
            async with asyncio.timeout(town.bed.hold + town.bed.patience):
                async with held(town.bed, town.names[0], town.certificates[0]) as connection:
                    if f'"app": "{label}"'.encode() in (await connection.get())[1]:
                        return
        await asyncio.sleep(0.05)


@pytest.fixture
async def patient(tmp_path: Path, made_streets: Streets) -> AsyncIterator[Town]:
    """Devices and a gateway that hold connections for longer than a busy machine takes for a move."""
    async with wireguard_bed(tmp_path, made_streets, hold=20.0) as bed, wireguard_town(bed) as town:
        yield town


async def test_planned_move_fails_no_request(patient: Town) -> None:
    """Held while there is no device, answered by the next one; what had begun is finished."""
    town = patient
    await answered(town)
    loop = asyncio.get_running_loop()
    async with stream(town) as seen:
        await asyncio.sleep(1)
        await town.forward(town.target(0, ""), town.target(1, town.ids[1]))
        stopped = loop.time()
        # What reached the first device before is finished; what did not by now waits for the next one.
        while loop.time() < stopped + 4 and any(start < stopped for start in seen.pending.values()):
            await asyncio.sleep(0.02)
        await town.serve(0, [])
        await town.serve(1, [*town.routes(1), town.web_route(0, town.apps[1].port)])
        await town.forward(town.target(0, town.ids[1], epoch=2), town.target(1, town.ids[1]))
        await asyncio.sleep(2)
    assert not seen.failed
    assert {what for _, _, what in seen.answers} == {"first", "second"}
    last, first = (
        max(start for start, _, what in seen.answers if what == "first"),
        min(start for start, _, what in seen.answers if what == "second"),
    )
    assert last < first, "no request that began after the switch went to the old device"


async def test_who_waits_for_a_move_is_let_in_soon_after_it(town: Town, bed: WireguardBed) -> None:
    """Tried every quarter of a second, where all devices are near; afterwards everybody is tried as ever."""
    await answered(town)
    passing = bed.remotes["gateway"].transport._gateway._passing
    assert passing is not None
    address = of_app(GROUP, "app0").v6

    async def hastened(*, wanted: bool) -> None:
        async with within(town, f"quick tries: {wanted}"):
            while (address in await passing._haproxy.command(f"show acl {passing._soon_file}")) is not wanted:
                await asyncio.sleep(0.05)

    await hastened(wanted=False)
    leaving = dataclasses.replace(town.target(0, town.ids[0]), moving=True)
    await town.forward(leaving, town.target(1, town.ids[1]))
    await hastened(wanted=True)
    await town.forward(dataclasses.replace(leaving, device=""), town.target(1, town.ids[1]))
    opening = asyncio.create_task(answered(town, "second"))
    async with within(town, "a connection that is tried quickly"):
        while "backend=soon" not in await passing._haproxy.command("show sess all"):
            await asyncio.sleep(0.05)
    await town.serve(0, [])
    await town.serve(1, [*town.routes(1), town.web_route(0, town.apps[1].port)])
    await town.forward(town.target(0, town.ids[1], epoch=2), town.target(1, town.ids[1]))
    async with within(town, "it is answered by the next device"):
        await opening
    await hastened(wanted=False)


async def test_dead_device_loses_only_what_was_under_way(town: Town, bed: WireguardBed) -> None:
    """Its cable is pulled; the gateway leads to the next one by moving the app's address."""
    await town.serve(1, [*town.routes(1), town.web_route(0, town.apps[1].port)])
    loop = asyncio.get_running_loop()
    await answered(town)
    async with stream(town) as seen:
        await asyncio.sleep(1)
        bed.streets.ip("homea", "link set eth0 down\n")
        try:
            cut = loop.time()
            await town.forward(town.target(0, town.ids[1], epoch=2), town.target(1, town.ids[1]))
            moved = loop.time()
            await asyncio.sleep(2)
        finally:
            bed.streets.ip("homea", "link set eth0 up\nroute add default via 192.168.71.1\n")
    assert {what for start, _, what in seen.answers if start > moved} == {"second"}
    assert all(start < moved for start, _, what in seen.answers if what not in ("first", "second")), (
        seen.failed
    )
    assert any(what == "second" for start, _, what in seen.answers if start > cut)


async def test_udp_and_tcp_ports_move_with_the_app(town: Town, bed: WireguardBed) -> None:
    """The client's flow goes on at the new device, from the same port."""
    loop = asyncio.get_running_loop()
    async with datagram_service(bed.app_host) as port:
        name = f":{bed.udp_port}"
        route = town.route("app3", name, port, RouteKind.UDP)
        await town.serve(0, [route])
        await town.forward(target(bed, "app3", name, town.ids[0], RouteKind.UDP))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.setblocking(False)
            client.connect((GATEWAY, bed.udp_port))

            async def echoed(text: bytes) -> None:
                while True:  # a datagram may be lost, as by any network
                    client.send(text)
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(1):
                            while await loop.sock_recv(client, 2048) != text.upper():
                                pass
                            return

            async with within(town, "an answer by the first device"):
                await echoed(b"one")
            await town.serve(1, [route])
            await town.serve(0, [])
            await town.forward(target(bed, "app3", name, town.ids[1], RouteKind.UDP, epoch=2))
            async with within(town, "an answer by the second device"):
                await echoed(b"two")


async def test_restarted_gateway_finds_its_devices_again(tmp_path: Path, made_streets: Streets) -> None:
    """By itself, with the same key and port: these devices send no heartbeat, and a keepalive would take minutes."""
    async with wireguard_bed(tmp_path, made_streets, heartbeat=3600.0) as bed, wireguard_town(bed) as town:
        contact = bed.gateway.contact()
        async with within(town, "a first answer"):
            await answered(town)
        saved = tmp_path / "gateway" / "state" / "endpoints.json"
        async with within(town, "endpoints saved"):
            while not saved.exists() or saved.read_text().count("198.51.100.") != 2:
                await asyncio.sleep(0.1)
        assert saved.stat().st_mode & 0o777 == 0o600
        await bed.remotes["gateway"].stop()
        await bed.restarted("gateway", made_streets)
        assert bed.gateway.contact() == contact
        await town.forward(town.target(0, town.ids[0]), town.target(1, town.ids[1]))
        async with within(town, "an answer after the restart"):
            await answered(town)


async def test_gateway_that_forgot_everything_is_found_by_the_heartbeat(
    town: Town, bed: WireguardBed
) -> None:
    await bed.remotes["gateway"].stop()
    (Path(bed.remotes["gateway"].folder) / "state" / "endpoints.json").unlink(missing_ok=True)
    await bed.restarted("gateway", bed.streets)
    await town.forward(town.target(0, town.ids[0]), town.target(1, town.ids[1]))
    async with within(town, "an answer after the restart"):
        await answered(town)


async def test_restarted_device_keeps_key_and_port(town: Town, bed: WireguardBed) -> None:
    before = bed.remotes["homea"].contact()
    port = bed.streets.run("homea", "wg", "show", interface_name(town.ids[0]), "listen-port")
    await bed.remotes["homea"].stop()
    await bed.restarted("homea", bed.streets)
    assert bed.remotes["homea"].contact() == before
    assert bed.streets.run("homea", "wg", "show", interface_name(town.ids[0]), "listen-port") == port
    key = Path(bed.remotes["homea"].folder) / "state" / "private.key"
    assert key.stat().st_mode & 0o777 == 0o600
    await town.serve(0, town.routes(0))
    async with within(town, "an answer after the restart"):
        await answered(town)


async def test_home_with_a_new_address_is_followed(town: Town, bed: WireguardBed) -> None:
    """The provider gives the router another one; what it had translated is forgotten."""
    async with within(town, "a first answer"):
        await answered(town)
    bed.streets.ip("nata", "address delete 198.51.100.21/24 dev wan\naddress add 198.51.100.31/24 dev wan\n")
    try:
        bed.streets.run("nata", "conntrack", "-F")
        async with within(town, "the new address"):
            while "198.51.100.31" not in {
                link.endpoint.partition(":")[0] for link in await bed.gateway.links()
            }:
                await asyncio.sleep(0.05)
            await answered(town)
    finally:
        bed.streets.ip(
            "nata", "address delete 198.51.100.31/24 dev wan\naddress add 198.51.100.21/24 dev wan\n"
        )
        bed.streets.run("nata", "conntrack", "-F")


def processes(program: str, word: str) -> list[int]:
    found = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0") if folder.name.isdigit() else [b""]
            if Path(words[0].decode()).name == program and any(word.encode() in w for w in words[1:]):
                found.append(int(folder.name))
    return found


@pytest.mark.parametrize("where", ["homea", "gateway"])
@pytest.mark.parametrize("program", ["wireguard-go", "haproxy"])
async def test_killed_program_comes_back_with_all_it_knew(
    town: Town, bed: WireguardBed, where: str, program: str
) -> None:
    remote = bed.remotes[where]
    word = interface_name(remote.device) if program == "wireguard-go" else str(remote.folder)
    (pid,) = processes(program, word)
    os.kill(pid, signal.SIGKILL)
    async with within(town, f"{program} again"):
        while not set(processes(program, word)) - {pid}:
            await asyncio.sleep(0.05)
        await answered(town)
    async with web_client(bed, *town.certificates) as client:
        assert (await client.tell(town.names[0]))["app"] == "first"


async def test_nothing_is_left_behind(tmp_path: Path, made_streets: Streets) -> None:
    async with wireguard_bed(tmp_path, made_streets) as bed, wireguard_town(bed):
        names = {role: interface_name(remote.device) for role, remote in bed.remotes.items()}
    for role, name in names.items():
        assert name not in made_streets.run(role, "ip", "link")
        assert name not in made_streets.run(role, "nft", "list", "tables")
        assert not Path(f"/var/run/wireguard/{name}.sock").exists()
    assert not processes("haproxy", str(tmp_path)) and not any(
        processes("wireguard-go", n) for n in names.values()
    )


def test_orphans_of_a_killed_agent_are_ended(tmp_path: Path) -> None:
    mark = str(tmp_path / "haproxy.cfg")
    Path(mark).write_text(f"global\n  stats socket {tmp_path}/s mode 600\n")
    mine = subprocess.Popen(["haproxy", "-db", "-f", mark], stderr=subprocess.DEVNULL)
    other = subprocess.Popen(["sleep", "60"])
    try:
        while not processes("haproxy", mark):
            pass
        kill_orphans("haproxy", mark)
        assert mine.wait(10) == -signal.SIGKILL
        assert other.poll() is None
    finally:
        for process in (mine, other):
            process.kill()
            process.wait()


def test_an_apps_addresses_do_not_depend_on_where_it_runs() -> None:
    """They are in every gateway's and device's table: changed, old and new agents would not meet."""
    assert of_app(GROUP, "app0").allowed == ("10.74.130.20/32", "fd68:7366:7261:d9c3:90ec:34d4:8d8d:618/128")


KILLED = """
import asyncio, sys
from pathlib import Path
from fractal.testing.context import real_context
from fractal_wireguard.config import WireguardConfig
from fractal_wireguard.transport import open_wireguard

async def main():
    async with real_context(Path(sys.argv[1]), device=sys.argv[2]) as context:
        async with open_wireguard(context, WireguardConfig(advertise="198.51.100.1", https_port=443)) as transport:
            print(transport.contact()["key"], flush=True)
            await asyncio.sleep(3600)

asyncio.run(main())
"""


def test_killed_agent_leaves_nothing_that_hinders_the_next(tmp_path: Path, made_streets: Streets) -> None:
    """SIGKILL: wireguard-go goes with it; HAProxy, which has the port, when the next one starts."""
    device = f"killed{tmp_path.name}{os.getpid()}"
    argv = ["nsenter", f"--net=/run/netns/{made_streets.names['gateway']}", sys.executable, "-c", KILLED]
    keys = set()
    for _ in range(3):
        with subprocess.Popen(
            [*argv, str(tmp_path), device], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as agent:
            try:
                assert agent.stdout is not None and agent.stderr is not None
                key = agent.stdout.readline()
                assert key, agent.stderr.read()
                keys.add(key)
                assert processes("wireguard-go", interface_name(device))
            finally:
                agent.kill()
    assert len(keys) == 1
    for _ in range(200):
        if not processes("wireguard-go", interface_name(device)):
            break
        time.sleep(0.05)
    else:
        pytest.fail("wireguard-go outlives its agent")
    for pid in processes("haproxy", str(tmp_path)):
        os.kill(pid, signal.SIGKILL)
    made_streets.run("gateway", "nft", "delete", "table", "inet", f"fractal_{interface_name(device)}")
    Path(f"/var/run/wireguard/{interface_name(device)}.sock").unlink(missing_ok=True)


async def test_stopped_agent_of_a_gateway_does_not_stop_what_passes(town: Town, bed: WireguardBed) -> None:
    """Its heart is silent, its tunnels and HAProxy work on: devices let them, as long as data comes."""
    await answered(town)
    key = bed.gateway.contact()["key"]
    interface = interface_name(town.ids[0])
    bed.remotes["gateway"].transport.heartbeat._known = lambda _address: False
    async with held(bed, town.names[0], town.certificates[0]) as connection:
        for _ in range(40):
            assert (await connection.get())[0] == 200
            await asyncio.sleep(0.1)
    assert key in bed.streets.run("homea", "wg", "show", interface, "latest-handshakes")


async def test_folder_too_deep_for_sockets_is_named(tmp_path: Path, made_streets: Streets) -> None:
    with pytest.raises(BackendError, match="too long"):
        async with wireguard_bed(tmp_path / ("x" * 60), made_streets) as bed, wireguard_town(bed):
            pass


async def test_hung_tunnel_is_told_and_goes_on_when_it_can(town: Town, bed: WireguardBed) -> None:
    await answered(town)
    (pid,) = processes("wireguard-go", interface_name(town.ids[0]))
    os.kill(pid, signal.SIGSTOP)
    try:
        async with within(town, "a link that is down"):
            while any(link.up for link in await bed.remotes["homea"].links()):
                await asyncio.sleep(0.1)
            (link,) = await bed.remotes["homea"].links()
        assert link.device == bed.gateway_id and "does not answer" in link.detail
    finally:
        os.kill(pid, signal.SIGCONT)
    async with within(town, "an answer when it goes on"):
        await answered(town)
