"""The whole system: three devices of two people at home, a gateway, and servers that nobody of them trusts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from tests.stack.bed import until
from tests.stack.real import wordpress
from tests.stack.real.browser import Blog, Browser, Stream
from tests.stack.real.device import GROUP, Device
from tests.stack.real.engines import Docker, Engine, Podman
from tests.stack.real.homeserver import Homeserver
from tests.stack.real.machine import Machine
from tests.stack.real.services import Authority, Fault, Shelf
from tests.stack.real.sniff import Sniffer
from tests.stack.real.watch import Watch
from tests.stack.real.world import BTRFS, World

APP = "wordpress"
GATE = "gate.test"
SITE = f"{APP}.{GATE}"
WAY_OUT = '[transport]\nbackend = "wireguard"\n'
"""A device behind NAT needs no setting: it goes out to its gateways."""
PI, LAPTOP, OLD = "Raspberry Pi", "Laptop", "Old PC"


@dataclass
class Scene:
    """Set up step by step, each of which says how long it took."""

    world: World
    timers: str = "standard"
    homes: Sequence[tuple[str, Callable[[Machine], Engine]]] = ((PI, Docker), (LAPTOP, Podman), (OLD, Docker))
    """Devices and their engines: the founder's, then one of a second member, then more of the founder's."""
    pool: str = BTRFS
    """The hosts' `[snapshot]`."""
    hosts: list[Device] = field(default_factory=list)
    authority: Authority = field(init=False)
    client: Machine = field(init=False)
    shelf: Shelf = field(init=False)
    homeserver: Homeserver = field(init=False)
    gateway: Device = field(init=False)
    watch: Watch = field(init=False)
    sniffer: Sniffer = field(init=False)
    blog: Blog = field(init=False)

    def set_up(self) -> None:
        """Everything up to an empty group with all its devices."""
        network = self.world.network
        self.authority = Authority(network)
        self.authority.start()
        self.client = network.public("Client")
        self.shelf = Shelf(network)
        self.shelf.start()
        self.homeserver = Homeserver(network, self.authority)
        self.homeserver.start()
        self.hosts = [self.host(name, engine) for name, engine in self.homes]
        self.gateway = self.door()
        self.world.say("machines and engines run")
        for device in (*self.hosts, self.gateway):
            device.start_agent()
        self.world.say("agents run")
        self.homeserver.log_in(self.pi, "anna")
        self.pi.run("group", "create", GROUP, "--timers", self.timers)
        for number, device in enumerate(self.hosts[1:]):
            if number == 0:
                bob = self.homeserver.log_in(device, "bob")
                self.world.join(self.pi, device, bob, "--role", "member", member="Bob")
            else:
                self.world.join(self.pi, device)
        self.world.join(self.pi, self.gateway, "--new-member", "--role", "member", member="Door")
        self.add_store()
        self.pi.run("gateway", "add", self.gateway.name, "--group", GROUP, "--address", GATE)
        self.world.say(f"{GROUP}: {', '.join(d.name for d in (*self.hosts, self.gateway))}")
        network.name(SITE, network.address(self.gateway.machine))
        self.sniffer = Sniffer(self.gateway.machine)
        self.sniffer.start()
        self.world.at_end.append(self.sniffer.stop)

    @property
    def pi(self) -> Device:
        """The device on which the app begins."""
        return self.hosts[0]

    @property
    def laptop(self) -> Device:
        """Lent by the second member."""
        return self.hosts[1]

    @property
    def old(self) -> Device:
        """The third."""
        return self.hosts[2]

    # --- parts -------------------------------------------------------------------------------------------------------

    def host(self, name: str, engine: Callable[[Machine], Engine]) -> Device:
        """A host at home."""
        folder = self.world.folder / "catalog"
        folder.mkdir(exist_ok=True)
        (folder / f"{APP}.yml").write_text(wordpress.MANIFEST)
        catalog = f'[[catalog]]\nbackend = "folder"\npath = "{folder}"\n'
        authority = (
            '[authority]\nbackend = "acme"\n[authority.acme]\naccept_terms = true\n'
            f'directory = "{self.authority.directory}"\nca_file = "{self.authority.path}"\n'
        )
        return self.world.host(name, engine, self.log(), WAY_OUT, authority, catalog, pool=self.pool)

    def door(self) -> Device:
        """The gateway."""
        transport = (
            '[transport]\nbackend = "wireguard"\n[transport.wireguard]\n'
            f'advertise = "{GATE}"\nhttps_port = 443\nhttp_port = 80\n'
        )
        return self.world.gateway("Front door", self.log(), transport, host=GATE)

    def log(self) -> str:
        """The devices' `[coordination]`: rooms on the homeserver."""
        path = self.authority.path
        return f'[coordination]\nbackend = "matrix"\n[coordination.matrix]\nca_file = "{path}"\n'

    def add_store(self) -> None:
        """As the how-to has it: the first attempt shows key and fingerprint; every other device shows its key."""
        words = ["store", "add", self.shelf.name, "--group", GROUP, *self.shelf.settings]
        answer = self.pi.fails(*words)
        self.shelf.let_in(answer)
        self.pi.run(*words, f"fingerprint={self.shelf.fingerprint(answer)}")
        for device in self.hosts[1:]:
            self.shelf.let_in(device.fails("store", "check", self.shelf.name, "--group", GROUP))

    def servers(self) -> list[Fault]:
        """Servers that the group depends on, as what may be hit."""
        return self.homeserver.faults()

    # --- the app -----------------------------------------------------------------------------------------------------

    def give_images(self, *devices: Device) -> None:
        """Bring the app's images into engines, as a registry would."""
        for recipe in wordpress.RECIPES:
            archive = recipe.archive()
            for device in devices:
                assert device.engine is not None
                device.engine.load(archive, recipe.name, list(recipe.settings))

    def install(self) -> None:
        """The very command; then WordPress's own installation by a client on the internet.

        Only the first device's engine has been given the images: the others have them from the store.
        """
        begin = time.monotonic()
        self.pi.run("app", "install", APP, "--group", GROUP, "--device", PI, timeout=300)
        self.world.figure("app install", f"{time.monotonic() - begin:.1f} s")
        order = [word for device in self.hosts[1:] for word in ("--prefer", device.name)]
        self.pi.run("app", "policy", APP, "--group", GROUP, "--standby", "2", *order)
        self.watch = self.world.watch(*self.hosts)
        until(lambda: bool(self.certificate()), 60, f"a certificate for {SITE}")
        address = self.world.network.address(self.gateway.machine)
        self.blog = Blog(Browser(self.client, SITE, address, self.authority.root))
        until(lambda: self.blog.browser.get("/").status in (200, 302), 60, f"{SITE} answers")
        self.blog.install()
        self.world.say(f"the client has installed WordPress at https://{SITE}")
        until(lambda: not self.pi.app(APP)["unarchived"], 180, "the images are in the store")
        self.world.figure("app install -> its images are in the store", f"{time.monotonic() - begin:.1f} s")

    def certificate(self) -> str:
        """The chain that the app's devices show, as the group's log has it."""
        routes = self.pi.ask("route", "list", "--group", GROUP)["routes"]
        return next((str(r["certificate"]) for r in routes if r["name"] == SITE), "")

    def stream(self, **options: float) -> Stream:
        """Requests to the site, again and again; they end with the test."""
        made = Stream(self.blog.browser, **options)  # type: ignore[arg-type]  # numbers only
        made.start()
        self.world.at_end.append(made.stop)
        return made

    def owner(self) -> Device:
        """Who owns the app, as the gateway's log says."""
        name = self.gateway.app(APP)["device"]
        return next(d for d in self.hosts if d.name == name)

    def serves(self, device: Device) -> bool:
        """Whether the site answers, and this device serves it."""
        return self.owner() is device and self.blog.browser.get("/").status == 200

    def wait_for_copy(self, device: Device, limit: float = 120) -> None:
        """Until a device has a warm copy of the app."""

        def warm() -> bool:
            found = self.gateway.app(APP)["standby"]
            return any(s["device"] == device.name and s["behind_s"] is not None for s in found)

        until(warm, limit, f"{device.name} has a copy")

    def posts(self, app: str = APP) -> list[str]:
        """Titles in an app's database, asked inside its container, wherever it runs."""
        sql = "select post_title from wordpress.wp_posts where post_status='publish' and post_type='post'"
        words = ["--group", GROUP, "--service", "db", app, "mariadb", "-N", "-e", sql]
        found: list[str] = []

        def told() -> bool:
            try:
                found[:] = self.pi.run("app", "exec", *words).splitlines()
            except RuntimeError as error:
                if "no sign of life" in str(error):
                    return False  # a device whose cable was put back has not heard of every other one yet
                raise
            return True

        until(told, 60, f"{app} says what is in its database")
        return found

    def posts_at(self, device: Device, moment: str) -> list[str]:
        """Titles in the database at a moment, by restoring it into a fork on a device.

        The fork is asked for on a device of the member who installed the app: nobody else may.
        """
        name = f"fork-{moment.replace('.', '-')}"
        self.pi.run("app", "fork", APP, name, "--group", GROUP, "--at", moment, "--device", device.name)
        until(partial(device.runs, name), 120, f"{name} runs")
        found = self.posts(name)
        self.pi.run("app", "remove", name, "--group", GROUP, "--yes")
        return found


__all__ = ["APP", "GATE", "GROUP", "SITE", "Engine", "Scene"]
