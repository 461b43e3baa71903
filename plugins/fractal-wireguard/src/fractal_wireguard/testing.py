"""A gateway, two homes behind NATs and a client in network namespaces of their own, for tests and benchmarks. Needs root.

    client 198.51.100.10 ---- bridge ---- gateway 198.51.100.1
           2001:db8::10         |                 2001:db8::1
                                +--- NAT a 198.51.100.21 --- home a 192.168.71.2
                                +--- NAT b 198.51.100.22 --- home b 192.168.72.2

The NATs let nothing in. The process itself moves to the client's namespace; a second wire leads from there to each home, over which
apps that listen in this process are reached at APPS, as containers are on a real device. Each transport runs in a thread
of its own that has entered its namespace, as a thread can: sockets and child processes come from there.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import ctypes
import json
import os
import secrets
import shutil
import socket
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from fractal.api.certificates import make_certificate
from fractal.api.transport import Certificate, Link, LocalRoute, Peer, RouteKind, Target
from fractal.shell.entropy import SystemEntropy
from fractal.testing.context import real_context
from fractal.testing.transport_parts import Bed, Town, free_port, held, web_app
from fractal_wireguard.config import WireguardConfig
from fractal_wireguard.tools import PACKAGES, TUN
from fractal_wireguard.transport import WireguardTransport, open_wireguard

T = TypeVar("T")
CLIENT, CLIENT6 = "198.51.100.10", "2001:db8::10"
GATEWAY, GATEWAY6 = "198.51.100.1", "2001:db8::1"
NATS = {"a": "198.51.100.21", "b": "198.51.100.22"}
HOMES = {"a": "192.168.71", "b": "192.168.72"}
APPS = "10.255.77.1"
_CLONE_NEWNET = 0x40000000
_STEP = 30.0
_libc = ctypes.CDLL(None, use_errno=True)


def missing() -> str:
    """Why the bed cannot be made here, or ""."""
    if os.geteuid() != 0:
        return "needs root for network namespaces"
    absent = [name for name in (*PACKAGES, "wireguard-go") if shutil.which(name) is None]
    if absent:
        return f"not installed: {', '.join(absent)}"
    return "" if TUN.exists() else f"there is no {TUN}"


def _enter(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def sh(*argv: str, stdin: str | None = None) -> str:
    """A command's output. Raises CalledProcessError, with what it said."""
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=_STEP, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: {done.returncode}: {done.stderr.strip()}\n{stdin or ''}")
    return done.stdout


@dataclass
class Streets:
    """The namespaces, by role: client, gateway, nata, natb, homea, homeb."""

    mark: str = field(default_factory=lambda: secrets.token_hex(3))
    names: dict[str, str] = field(default_factory=dict)

    def ip(self, role: str, lines: str) -> None:
        """Run a batch of `ip` commands in a namespace."""
        sh("ip", "-n", self.names[role], "-batch", "-", stdin=lines)

    def run(self, role: str, *argv: str, stdin: str | None = None) -> str:
        """Run a command in a namespace."""
        return sh("nsenter", f"--net=/run/netns/{self.names[role]}", *argv, stdin=stdin)

    @contextmanager
    def inside(self, role: str) -> Iterator[None]:
        """This thread is in a namespace, for the length of a block."""
        with (
            Path("/proc/thread-self/ns/net").open() as before,
            Path(f"/run/netns/{self.names[role]}").open() as there,
        ):
            _enter(there.fileno())
            try:
                yield
            finally:
                _enter(before.fileno())

    def build(self) -> None:
        """Make everything."""
        for role in ("client", "gateway", "nata", "natb", "homea", "homeb"):
            self.names[role] = f"hswg{self.mark}{role}"
            sh("ip", "netns", "add", self.names[role])
            self.ip(role, "link set lo up\n")
            # A new namespace takes over the host's value, and Docker sets that to 1.
            self.run(role, "sysctl", "-qw", f"net.ipv4.ip_forward={int(role.startswith('nat'))}")
        self.ip("client", f"link add br0 type bridge\nlink set br0 up\naddress add {CLIENT}/24 dev br0\n")
        self.ip("client", f"address add {CLIENT6}/64 dev br0 nodad\naddress add {APPS}/32 dev lo\n")
        self._wire("gateway", f"address add {GATEWAY}/24 dev wan\naddress add {GATEWAY6}/64 dev wan nodad\n")
        for letter, public in NATS.items():
            lan = HOMES[letter]
            self._wire(f"nat{letter}", f"address add {public}/24 dev wan\n")
            self._link(f"nat{letter}", "lan", f"home{letter}", "eth0")
            self.ip(f"nat{letter}", f"address add {lan}.1/24 dev lan\n")
            self.ip(f"home{letter}", f"address add {lan}.2/24 dev eth0\nroute add default via {lan}.1\n")
            self.run(f"nat{letter}", "nft", "-f", "-", stdin=_NAT)
            self._link("client", f"apps{letter}", f"home{letter}", "apps")
            near, far = ("10.255.78.1", "10.255.78.2") if letter == "a" else ("10.255.78.5", "10.255.78.6")
            self.ip("client", f"address add {near}/30 dev apps{letter}\n")
            self.ip(f"home{letter}", f"address add {far}/30 dev apps\nroute add {APPS}/32 via {near}\n")

    def _wire(self, role: str, lines: str) -> None:
        self._link("client", f"to{role}", role, "wan")
        self.ip("client", f"link set to{role} master br0\n")
        self.ip(role, lines)

    def _link(self, one: str, name: str, other: str, there: str) -> None:
        self.ip(
            one,
            f"link add {name} type veth peer name {there} netns {self.names[other]}\nlink set {name} up\n",
        )
        self.ip(other, f"link set {there} up\n")

    def remove(self) -> None:
        """Take everything away."""
        for name in self.names.values():
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, timeout=_STEP, check=False)


_NAT = """
table inet nat {
  chain post { type nat hook postrouting priority srcnat; oifname "wan" masquerade; }
  chain forward { type filter hook forward priority filter; policy drop;
    ct state established,related accept
    iifname "lan" oifname "wan" accept
  }
  chain input { type filter hook input priority filter; policy drop;
    ct state established,related accept
    iifname "lan" accept
  }
}
"""


@contextmanager
def streets() -> Iterator[Streets]:
    """Namespaces for the length of a block, with this thread in the client's."""
    made = Streets()
    try:
        made.build()
        with made.inside("client"):
            yield made
    finally:
        made.remove()


class Remote:
    """A transport that runs in a namespace, in a thread and a loop of its own. Satisfies what the transport does."""

    def __init__(
        self, streets_: Streets, role: str, folder: Path, device: str, config: WireguardConfig
    ) -> None:
        self._streets = streets_
        self._role = role
        self.folder = folder
        self._config = config
        self._ready: concurrent.futures.Future[WireguardTransport] = concurrent.futures.Future()
        self._thread = threading.Thread(target=self._main, name=f"transport {role}")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self.device = device

    def _main(self) -> None:
        try:
            with self._streets.inside(self._role):
                asyncio.run(self._run())
        except BaseException as error:
            if not self._ready.done():
                self._ready.set_exception(error)
            raise

    async def _run(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with (
            real_context(self.folder, device=self.device) as context,
            open_wireguard(context, self._config) as transport,
        ):
            assert isinstance(transport, WireguardTransport)
            self._ready.set_result(transport)
            await self._stop.wait()
        await asyncio.sleep(0.1)  # threads that wait for the ended programs tell this loop

    def again(self, streets_: Streets) -> Remote:
        """Another one with the same folder and settings."""
        return Remote(streets_, self._role, self.folder, self.device, self._config)

    async def start(self) -> None:
        """Open the transport. Raises what that raises."""
        threading.excepthook = _quiet
        self._thread.start()
        await asyncio.wrap_future(self._ready)

    async def stop(self) -> None:
        """Close it."""
        if self._loop is not None and self._stop is not None and self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # its loop has ended by itself
                self._loop.call_soon_threadsafe(self._stop.set)
        if self._thread.ident is not None:
            await asyncio.to_thread(self._thread.join)

    @property
    def transport(self) -> WireguardTransport:
        """The one in the other thread: look, do not touch."""
        return self._ready.result()

    async def call(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine over there."""
        assert self._loop is not None
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work(), self._loop))

    def contact(self) -> Mapping[str, str]:
        return self.transport.contact()

    async def serve(self, gateways: Sequence[Peer], routes: Sequence[LocalRoute]) -> None:
        await self.call(lambda: self.transport.serve(gateways, routes))

    async def forward(self, peers: Sequence[Peer], targets: Sequence[Target]) -> None:
        await self.call(lambda: self.transport.forward(peers, targets))

    async def links(self) -> Sequence[Link]:
        return await self.call(self.transport.links)

    async def challenge(self, group: str, app: str, name: str, certificate: Certificate | None) -> None:
        await self.call(lambda: self.transport.challenge(group, app, name, certificate))

    async def probe(self, name: str, kind: RouteKind) -> None:
        await self.call(lambda: self.transport.probe(name, kind))


def _quiet(_arguments: threading.ExceptHookArgs) -> None:
    """What a thread raised is told by `Remote.start`."""


@dataclass(kw_only=True)
class WireguardBed(Bed):
    """The bed with its streets."""

    streets: Streets
    remotes: dict[str, Remote]
    """By role."""

    async def restarted(self, role: str, streets_: Streets) -> Remote:
        """A transport in the place of one that has been stopped, with the same folder and settings."""
        old = self.remotes[role]
        new = old.again(streets_)
        await new.start()
        self.remotes[role] = new
        if role == "gateway":
            self.gateway = new
        else:
            self.devices = {**self.devices, new.device: new}
        return new


@asynccontextmanager
async def wireguard_bed(folder: Path, streets_: Streets, **settings: Any) -> AsyncIterator[WireguardBed]:
    """A gateway and two devices in streets that stand. Devices' ids are new each time: interfaces' names too."""
    mark = secrets.token_hex(4)
    ids = {role: f"{role:0<12}{mark}" for role in ("gateway", "homea", "homeb")}
    common: dict[str, Any] = {"hold": 2.0, "greeting_timeout": 3.0} | settings
    public = WireguardConfig(advertise=GATEWAY, https_port=443, http_port=80, **common)
    remotes: dict[str, Remote] = {
        role: Remote(
            streets_,
            role,
            folder / role,
            ids[role],
            public if role == "gateway" else WireguardConfig(**common),
        )
        for role in ids
    }
    async with contextlib.AsyncExitStack() as undo:

        async def stop() -> None:
            await asyncio.gather(*(remote.stop() for remote in remotes.values()))

        undo.push_async_callback(stop)
        await asyncio.gather(*(remote.start() for remote in remotes.values()))

        @contextmanager
        def taken(host: str) -> Iterator[int]:
            with streets_.inside("gateway"):
                other = socket.socket()
            with other:
                other.bind((host, 0))
                other.listen()
                yield other.getsockname()[1]

        yield WireguardBed(
            gateway_id=ids["gateway"],
            gateway=remotes["gateway"],
            devices={ids[role]: remotes[role] for role in ("homea", "homeb")},
            https=(GATEWAY, 443),
            tcp_port=free_port(),
            udp_port=free_port(socket.SOCK_DGRAM),
            hold=common["hold"],
            client=CLIENT,
            app_host=APPS,
            taken=taken,
            streets=streets_,
            remotes=remotes,
        )


@asynccontextmanager
async def wireguard_town(bed: WireguardBed) -> AsyncIterator[Town]:
    """The bed with an app on each device, both reachable under their names."""
    entropy = SystemEntropy()
    one, two = (make_certificate(name, entropy, 1_790_000_000_000) for name in bed.names)
    async with web_app("first", bed.app_host) as first, web_app("second", bed.app_host) as second:
        ids = tuple(bed.devices)
        town = Town(bed, (ids[0], ids[1]), (first, second), (one, two))
        await town.settle()
        yield town


@dataclass
class Stream:
    """New TLS connections with one request each, one after the other started every so often, and what became of them."""

    pending: dict[object, float] = field(default_factory=dict)
    """When those began that have no answer yet."""
    answers: list[tuple[float, float, str]] = field(default_factory=list)
    """(started, ended, app that answered or what went wrong); seconds of the loop's clock."""

    @property
    def failed(self) -> list[str]:
        """What went wrong."""
        return [what for _, _, what in self.answers if what not in ("first", "second")]


@asynccontextmanager
async def stream(town: Town, every: float = 1 / 40) -> AsyncIterator[Stream]:
    """Requests to the first name for the length of a block; those that have begun are waited for."""
    made, loop, asking = Stream(), asyncio.get_running_loop(), set[asyncio.Task[None]]()

    async def ask() -> None:
        start = made.pending[me := object()] = loop.time()
        try:
            async with held(town.bed, town.names[0], town.certificates[0]) as connection:
                status, body = await connection.get()
                what = json.loads(body)["app"] if status == 200 else f"status {status}"
        except OSError as error:
            what = repr(error)
        finally:
            del made.pending[me]
        made.answers.append((start, loop.time(), what))

    async def go_on() -> None:
        while True:
            task = asyncio.create_task(ask())
            asking.add(task)
            task.add_done_callback(asking.discard)
            await asyncio.sleep(every)

    going = asyncio.create_task(go_on())
    try:
        yield made
    finally:
        going.cancel()
        await asyncio.wait({going, *asking}, timeout=town.bed.hold + town.bed.patience)
