"""What an app reaches and what it does not, tried from inside a container; each with a control that the attempt could succeed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Self

import pytest
from fractal_containers.isolation import LOOK
from fractal_containers.testing import RememberingRuntime, TestEngine, entered, opened
from fractal_containers.testing_images import BUSYBOX

from fractal.api.app import AppRun, AppSpec, Port, ServiceSpec
from fractal.api.errors import BackendError, Misconfigured
from fractal.testing.runtime_parts import seen, until_async

pytestmark = pytest.mark.usefixtures("inside")
INTERNET, LAN, TUNNEL = "203.0.113", "192.168.77", "10.99.0"
PORT = 7654
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
SERVE = ("httpd", "-f", "-p", str(PORT), "-h", "/etc")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, timeout=20)


def apart(process: subprocess.Popen[bytes]) -> Path:
    """The network namespace of an `unshare`, once it has one."""
    found, ours = Path(f"/proc/{process.pid}/ns/net"), Path("/proc/thread-self/ns/net").readlink()
    end = time.monotonic() + 20
    while found.readlink() == ours:
        assert time.monotonic() < end
        time.sleep(0.01)
    return found


class Surroundings:
    """A device's network: an uplink with the internet and a LAN behind it, a tunnel, and services of the device."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self.tunnel = -1

    def __enter__(self) -> Self:
        with self._stack:
            outside = subprocess.Popen(["unshare", "--net", "sleep", "600"])
            self._stack.callback(outside.wait)
            self._stack.callback(outside.kill)
            there = apart(outside)
            ip("link", "add", "up0", "type", "veth", "peer", "name", "eth0", "netns", str(outside.pid))
            self._stack.callback(subprocess.run, ["ip", "link", "delete", "up0"], timeout=20)
            for network in (INTERNET, LAN):
                ip("address", "add", f"{network}.1/24", "dev", "up0")
            ip("link", "set", "up0", "up")
            ip("route", "add", "default", "via", f"{INTERNET}.2")
            with entered(there):
                ip("link", "set", "lo", "up")
                for network in (INTERNET, LAN):
                    ip("address", "add", f"{network}.2/24", "dev", "eth0")
                ip("link", "set", "eth0", "up")
                self._listen()
            self._listen()
            self.tunnel = self._open_tunnel()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _listen(self) -> None:
        """The kernel accepts by itself, as long as the backlog has room: a connection is all that is tried."""
        server = socket.create_server(("::", PORT), family=socket.AF_INET6, backlog=500, dualstack_ipv6=True)
        self._stack.enter_context(server)

    def _open_tunnel(self) -> int:
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        self._stack.callback(os.close, descriptor)
        fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH", b"tun7", IFF_TUN | IFF_NO_PI))
        ip("address", "add", f"{TUNNEL}.1/24", "dev", "tun7")
        ip("link", "set", "tun7", "up")
        return descriptor

    def arrived(self, destination: str) -> int:
        """How many packets for an address went into the tunnel since the last look."""
        count = 0
        with contextlib.suppress(BlockingIOError):
            while packet := os.read(self.tunnel, 65536):
                count += packet[16:20] == socket.inet_aton(destination)
        return count


@pytest.fixture
def around(inside: None) -> Iterator[Surroundings]:
    with Surroundings() as made:
        yield made


@pytest.fixture
async def runtime(engine: TestEngine, tmp_path: Path, inside: None) -> AsyncIterator[RememberingRuntime]:
    async with opened(engine, tmp_path) as made:
        yield made


def service(name: str = "main", **options: object) -> ServiceSpec:
    made = ServiceSpec(name=name, image=BUSYBOX, argv=("sleep", "1000"), stop_grace=1.0)
    return replace(made, **options)  # type: ignore[arg-type]  # fields of ServiceSpec


def server(name: str = "web", **options: object) -> ServiceSpec:
    web = (Port(name="web", container=PORT),)
    return service(name, argv=SERVE, ports=web, **options)


def run_of(folder: Path, *services: ServiceSpec, app: str = "app") -> AppRun:
    root = folder / f"root-{app}"
    root.mkdir(exist_ok=True)
    return AppRun(
        group="group", app=app, epoch=1, spec=AppSpec(name=app, services=services), volume_root=root
    )


async def up(runtime: RememberingRuntime, *runs: AppRun) -> None:
    for run in runs:
        await runtime.prepare(run)
        await runtime.freezable(run)
        await runtime.start(run)


async def reaches(runtime: RememberingRuntime, run: AppRun, host: str, port: int = PORT) -> bool:
    """Whether a connection from inside comes about."""
    words = ["nc", "-w", "2", host, str(port), "-e", "true"]
    return (await runtime.exec(run.key, "main", words, timeout=20.0)).exit_code == 0


async def address(runtime: RememberingRuntime, run: AppRun, name: str) -> str:
    (found,) = [c.address for c in await runtime._containers(run.key) if c.service == name]
    return found


async def gateway(runtime: RememberingRuntime, run: AppRun) -> str:
    """The device's own address in the run's network."""
    said = (await runtime.exec(run.key, "main", ["cat", "/proc/net/route"])).output.decode()
    (found,) = [line.split()[2] for line in said.splitlines() if line.split()[1] == "00000000"]
    return socket.inet_ntoa(struct.pack("<I", int(found, 16)))


def without(runtime: RememberingRuntime) -> None:
    subprocess.run(["nft", "delete", "table", "inet", runtime._isolation.table], check=True, timeout=20)


async def test_neither_the_device_nor_its_tunnels_nor_its_lan_are_reached_but_the_internet_is(
    runtime: RememberingRuntime, around: Surroundings, tmp_path: Path
) -> None:
    run = run_of(tmp_path, service())
    await up(runtime, run)
    device = [await gateway(runtime, run), f"{INTERNET}.1", f"{LAN}.1", f"{TUNNEL}.1"]
    for host in (*device, f"{LAN}.2"):
        assert not await reaches(runtime, run, host), host
    around.arrived(f"{TUNNEL}.2")
    assert not await reaches(runtime, run, f"{TUNNEL}.2")
    assert around.arrived(f"{TUNNEL}.2") == 0
    assert await reaches(runtime, run, f"{INTERNET}.2")
    without(runtime)  # all of it would be reached if nothing forbade it
    for host in (*device, f"{LAN}.2"):
        assert await reaches(runtime, run, host), host
    await reaches(runtime, run, f"{TUNNEL}.2")
    assert around.arrived(f"{TUNNEL}.2") > 0
    runtime._isolation._looked -= LOOK
    await runtime.observe()  # and is forbidden again
    for host in (*device, f"{LAN}.2"):
        assert not await reaches(runtime, run, host), host
    assert await reaches(runtime, run, f"{INTERNET}.2")


async def test_other_apps_are_not_reached(runtime: RememberingRuntime, tmp_path: Path) -> None:
    """Neither at their own address nor where they are published."""
    run, other = run_of(tmp_path, service()), run_of(tmp_path, server(), app="other")
    await up(runtime, run, other)
    there = await address(runtime, other, "web")
    (published,) = (s.endpoints[0][2] for s in (await seen(runtime, other)).services)
    assert not await reaches(runtime, run, there)
    assert not await reaches(runtime, run, await gateway(runtime, run), published)
    assert not await reaches(runtime, run, await gateway(runtime, run), PORT)
    with socket.create_connection((there, PORT), timeout=5.0):  # the device itself does
        pass


async def test_an_apps_own_services_are_reached_by_name_and_published_on_loopback(
    runtime: RememberingRuntime, tmp_path: Path
) -> None:
    run = run_of(tmp_path, server(), service())
    await up(runtime, run)
    assert await reaches(runtime, run, "web")
    ((_, host, port),) = (e for s in (await seen(runtime, run)).services for e in s.endpoints)
    assert host == "127.0.0.1"
    with socket.create_connection((host, port), timeout=5.0) as end:
        end.sendall(b"GET /passwd HTTP/1.0\r\n\r\n")
        assert end.recv(100).startswith(b"HTTP/")


async def test_sockets_and_folders_of_the_device_are_not_there(
    engine: TestEngine, runtime: RememberingRuntime, tmp_path: Path
) -> None:
    """The agent's, the engine's, the store's: an app sees its image, its volumes and its secrets."""
    run = run_of(tmp_path, service())
    agent = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(agent))
        await up(runtime, run)
        for path in (
            agent,
            engine.socket,
            engine.folder,
            tmp_path,
            Path("/run/docker.sock"),
            Path("/run/podman"),
        ):
            assert (await runtime.exec(run.key, "main", ["test", "-e", str(path)])).exit_code == 1, path
    said = (await runtime.exec(run.key, "main", ["cat", "/proc/1/mountinfo"])).output.decode()
    targets = {line.split()[4] for line in said.splitlines()}
    of_the_kernel = ("/proc", "/sys", "/dev")
    others = {t for t in targets if t != "/" and not t.startswith(of_the_kernel)}
    assert others <= {"/etc/resolv.conf", "/etc/hostname", "/etc/hosts", "/run/.containerenv", "/run/secrets"}


async def test_the_device_is_not_reached_by_its_link_local_address_either(
    runtime: RememberingRuntime, around: Surroundings, tmp_path: Path
) -> None:
    """Docker switches IPv6 off in a container whose network has none; Podman does not."""
    run = run_of(tmp_path, service())
    await up(runtime, run)
    (network,) = await runtime._engine.networks(runtime._labels(run.key))
    lines = Path("/proc/thread-self/net/if_inet6").read_text().splitlines()
    (host,) = {socket.inet_ntop(socket.AF_INET6, bytes.fromhex(x[:32])) for x in lines if network.bridge in x}
    words = ["cat", "/proc/net/if_inet6"]
    has_one = b"eth0" in (await runtime.exec(run.key, "main", words)).output
    if has_one:  # it takes a while until an address counts as nobody else's
        without(runtime)
        await until_async(lambda: reaches(runtime, run, f"{host}%eth0"))
        await runtime._isolation.ensure([network])
    assert not await reaches(runtime, run, f"{host}%eth0")


async def test_an_engine_that_was_killed_finds_its_apps_shut_in_as_before(
    engine: TestEngine, runtime: RememberingRuntime, around: Surroundings, tmp_path: Path
) -> None:
    """Docker ends what ran when it comes back, Podman does not even notice; the agent starts again what does not run."""
    run = run_of(tmp_path, service())
    await up(runtime, run)
    engine.kill()
    await runtime.start(run)
    assert [s.running for s in (await seen(runtime, run)).services] == [True]
    assert not await reaches(runtime, run, f"{LAN}.1")
    assert not await reaches(runtime, run, await gateway(runtime, run))
    assert await reaches(runtime, run, f"{INTERNET}.2")


async def test_what_a_device_allows_is_reached(
    engine: TestEngine, around: Surroundings, tmp_path: Path
) -> None:
    async with opened(engine, tmp_path, reach=(f"{LAN}.2/32",)) as runtime:
        run = run_of(tmp_path, service())
        await up(runtime, run)
        assert await reaches(runtime, run, f"{LAN}.2")
        assert not await reaches(runtime, run, f"{LAN}.1")  # the device itself is never


async def test_the_table_goes_with_the_last_run(runtime: RememberingRuntime, tmp_path: Path) -> None:
    runs = [run_of(tmp_path, service(), app=app) for app in ("one", "two")]
    await up(runtime, *runs)

    def elements() -> str:
        words = ["nft", "list", "table", "inet", runtime._isolation.table]
        return subprocess.run(words, capture_output=True, text=True, check=False, timeout=20).stdout

    bridges = [n.bridge for n in await runtime._engine.networks(runtime._labels())]
    assert len(bridges) == 2
    assert all(bridge in elements() for bridge in bridges)
    await runtime.kill(runs[0].key)
    await runtime.remove(runs[0].key)
    (left,) = [n.bridge for n in await runtime._engine.networks(runtime._labels())]
    assert [bridge for bridge in bridges if bridge in elements()] == [left]
    await runtime.kill(runs[1].key)
    await runtime.remove(runs[1].key)
    assert elements() == ""


async def test_nothing_runs_where_it_cannot_be_shut_in(
    engine: TestEngine, runtime: RememberingRuntime, tmp_path: Path
) -> None:
    """As when the engine works in another network namespace than the agent."""
    run = run_of(tmp_path, service())
    await runtime.prepare(run)
    nowhere = subprocess.Popen(["unshare", "--net", "sleep", "600"])
    try:
        with entered(apart(nowhere)), pytest.raises(BackendError, match="one network"):
            await runtime.start(run)
    finally:
        nowhere.kill()
        nowhere.wait()
    assert not runtime._cgroup(run.key).pids()


def test_a_network_to_reach_must_be_one() -> None:
    from fractal_containers.isolation import _reach

    with pytest.raises(Misconfigured, match="reach"):
        list(_reach(["192.168.1.5/24"]))
    with pytest.raises(Misconfigured, match="reach"):
        list(_reach(["0.0.0.0/0 accept; flush ruleset"]))
