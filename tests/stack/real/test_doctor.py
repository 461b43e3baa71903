"""`homeserver doctor` on real parts: each link of the chain is broken from outside, and doctor must say which."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.stack.bed import comm_of, kill, until
from tests.stack.real.browser import Browser
from tests.stack.real.device import GROUP, Device
from tests.stack.real.engines import Docker
from tests.stack.real.scene import GATE, PI, Scene
from tests.stack.real.small import IMAGE, MANIFEST, SETTINGS, image
from tests.stack.real.world import World

APP = "notebook"
SITE = f"{APP}.{GATE}"
OTHER = f"other.{GATE}"
POOL = '[snapshot]\nbackend = "btrfs"\n[snapshot.btrfs]\nsize = "512M"\nlimit = "512M"\n'
PATIENCE = 90.0
"""Seconds within which doctor must name what was broken, or be content again: beats, probes and time-outs take theirs."""


@dataclass(frozen=True, slots=True)
class Break:
    """A link, how it is broken and mended, and what doctor has to say on which device."""

    link: str
    broken: Callable[[], object]
    mended: Callable[[], object]
    where: Device
    says: str
    """A pattern that one finding must match; what is asked for is the link's own name or the thing that broke."""


@pytest.mark.timeout(1800)  # with the making of images and of a homeserver, once
def test_doctor_names_each_broken_link_and_nothing_on_a_healthy_stack(real: World) -> None:
    scene = Scene(real, homes=((PI, Docker),), pool=POOL)
    scene.set_up()
    install(scene)
    content(scene, "a healthy stack")
    for one in breaks(scene):
        real.say(f"broken: {one.link}")
        try:
            one.broken()
            found: list[dict[str, Any]] = []

            def named(one: Break = one, found: list[dict[str, Any]] = found) -> bool:
                found[:] = findings(one.where)
                return any(re.search(one.says, f["what"]) and f["remedy"] for f in found)

            try:
                until(named, PATIENCE, f"doctor names the {one.link}")
            except AssertionError as error:
                raise AssertionError(f"{error}; it says: {[f['what'] for f in found]}") from error
            said = next(f for f in found if re.search(one.says, f["what"]))
            real.say(f"  doctor: {said['what']} -> {said['remedy']}")
        finally:
            one.mended()
        content(scene, f"the mended {one.link}")


def install(scene: Scene) -> None:
    """The small app, behind its route and certificate."""
    pi, world = scene.pi, scene.world
    world.network.name(SITE, world.network.address(scene.gateway.machine))
    assert pi.engine is not None
    pi.engine.load(image(world.folder), IMAGE, SETTINGS)
    path = world.folder / "notebook.yml"
    path.write_text(MANIFEST)
    pi.run("app", "install", str(path), "--group", GROUP, "--device", pi.name, "--wait", "120")
    # It has nowhere to go: whatever breaks, it stays, and so does what is to be found.
    pi.run(
        "app",
        "policy",
        APP,
        "--group",
        GROUP,
        "--standby",
        "0",
        "--failover",
        "manual",
        "--on-isolation",
        "keep",
    )
    address = world.network.address(scene.gateway.machine)
    browser = Browser(scene.client, SITE, address, scene.authority.root)
    until(lambda: browser.get("/cgi-bin/lines").status == 200, 120, f"{SITE} answers")
    until(lambda: not pi.app(APP)["unarchived"], 120, "the image is in the store")


def findings(device: Device) -> list[dict[str, Any]]:
    """What doctor finds there."""
    found: list[dict[str, Any]] = device.call("doctor.run", group=GROUP)["findings"]
    return found


def content(scene: Scene, what: str) -> None:
    """Doctor has nothing to say, on the device and on the gateway."""
    for device in (scene.pi, scene.gateway):
        last: list[str] = []

        def quiet(device: Device = device, last: list[str] = last) -> bool:
            last[:] = [f["what"] for f in findings(device)]
            return not last

        try:
            until(quiet, PATIENCE, f"doctor is content on {device.name} with {what}")
        except AssertionError as error:
            raise AssertionError(f"{error}; it says: {last}") from error


def breaks(scene: Scene) -> list[Break]:
    """From the name to the clock, as far as it can be broken from outside."""
    network, pi, door = scene.world.network, scene.pi, scene.gateway
    assert isinstance(pi.engine, Docker)
    engine = pi.engine
    gate, elsewhere = network.address(door.machine), network.address(scene.client)
    pool = pi.state / "snapshot" / "btrfs" / "pool"

    def fill() -> None:
        pi.machine.run("sh", "-c", f"dd if=/dev/zero of={pool}/filler bs=1M || true", timeout=120)

    def engine_command(*words: str) -> str:
        return pi.machine.run(*engine.command, *words)

    def container() -> str:
        return engine_command(
            "ps", "--quiet", "--filter", "status=running", "--filter", "status=paused"
        ).split()[0]

    return [
        Break(
            "name",
            lambda: network.name(SITE, elsewhere),
            lambda: network.name(SITE, gate),
            pi,
            rf"{re.escape(SITE)} leads",
        ),
        Break(
            "gateway",
            lambda: network.unplug(door.machine),
            lambda: network.plug(door.machine),
            pi,
            r"gateway Front door is not reached|the link to Front door is down|no gateway is heard",
        ),
        Break(
            "tunnel",
            lambda: hit(pi.machine.left(), "wireguard-go", signal.SIGSTOP),
            lambda: hit(pi.machine.left(), "wireguard-go", signal.SIGCONT),
            pi,
            r"link to Front door|transport wireguard",
        ),
        Break(
            "certificate",
            lambda: new_name(scene),
            lambda: scene.authority.part.send(signal.SIGCONT),
            pi,
            r"certificate",
        ),
        Break(
            "container",
            lambda: engine_command("pause", container()),
            lambda: engine_command("unpause", container()),
            pi,
            rf"{APP} (is|does not answer)",
        ),
        Break(
            "probe",
            lambda: hit(pi.app_processes(), "busybox", signal.SIGSTOP),
            lambda: hit(pi.app_processes(), "busybox", signal.SIGCONT),
            pi,
            rf"{APP} (is unhealthy|does not answer)",
        ),
        Break(
            "engine",
            lambda: pi.signal_engine(signal.SIGSTOP),
            lambda: pi.signal_engine(signal.SIGCONT),
            pi,
            r"runtime docker",
        ),
        Break(
            "file system",
            fill,
            lambda: pi.machine.run("rm", "-f", f"{pool}/filler"),
            pi,
            r"file system|snapshotter btrfs",
        ),
        Break(
            "store",
            lambda: network.unplug(scene.shelf.machine),
            lambda: network.plug(scene.shelf.machine),
            pi,
            r"store Shelf",
        ),
        Break(
            "log",
            lambda: scene.homeserver.part.send(signal.SIGSTOP),
            lambda: scene.homeserver.part.send(signal.SIGCONT),
            pi,
            r"\blog\b",
        ),
        Break(
            "clock",
            lambda: again(door, {"LD_PRELOAD": fake_time(), "FAKETIME": "+90s", "DONT_FAKE_MONOTONIC": "1"}),
            lambda: again(door, {}),
            pi,
            r"clocks .* Front door",
        ),
    ]


def hit(pids: list[int], name: str, number: signal.Signals) -> None:
    """Signal those of the processes that have that name."""
    found = [pid for pid in pids if comm_of(pid) == name]
    assert found, f"no {name} among {sorted({comm_of(pid) for pid in pids})}"
    for pid in found:
        kill(pid, number)


def new_name(scene: Scene) -> None:
    """One more name for the app, while the authority hangs."""
    scene.authority.part.send(signal.SIGSTOP)
    network = scene.world.network
    network.name(OTHER, network.address(scene.gateway.machine))
    scene.pi.run("route", "add", OTHER, APP, "--group", GROUP)


def again(device: Device, env: dict[str, str]) -> None:
    """Start a device's agent again, with these variables."""
    assert device.agent is not None
    device.agent.end()
    device.start_agent(env)


def fake_time() -> str:
    """The library with which one program's wall clock is wrong."""
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    assert found, "libfaketime is not installed (Debian: faketime)"
    return str(found[0])
