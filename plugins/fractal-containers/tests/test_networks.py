"""Several networks of one app, tried from inside: who reaches whom, what has no way out, and who has whose network."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fractal_containers.testing import RememberingRuntime, TestEngine, opened
from fractal_containers.testing_images import BUSYBOX

from fractal.api.app import AppRun
from fractal.api.runtime import Health, RunStatus
from fractal.manifest import parse
from fractal.testing.runtime_parts import seen

pytestmark = pytest.mark.usefixtures("inside")
PORT = 7654
UPLINK, FAR = "203.0.113.1", "203.0.113.2"
MANIFEST = f"""
services:
  db: &service
    image: "{BUSYBOX}"
    command: [httpd, -f, -p, "{PORT}", -h, /etc]
    stop_grace_period: 1s
    ports: ["{PORT}"]
    networks: {{back: {{aliases: [database]}}}}
    x-homeserver: {{health: {{http: /passwd, port: "{PORT}", interval: 1s}}}}
  web:
    <<: *service
    networks: [back, front]
  other:
    <<: *service
    networks: [front]
  plain:
    image: "{BUSYBOX}"
    stop_grace_period: 1s
  beside:
    image: "{BUSYBOX}"
    stop_grace_period: 1s
    network_mode: service:db
networks:
  front: {{}}
  back: {{internal: true}}
"""


@pytest.fixture
def internet(inside: None) -> Iterator[None]:
    """A way out of the engine's network, and somebody there who accepts: the kernel does by itself."""
    far = subprocess.Popen(["unshare", "--net", "sleep", "600"])
    try:
        ours, end = Path("/proc/thread-self/ns/net").readlink(), time.monotonic() + 20
        while Path(f"/proc/{far.pid}/ns/net").readlink() == ours:
            assert time.monotonic() < end
            time.sleep(0.01)
        for line in (
            f"ip link add far0 type veth peer name eth0 netns {far.pid}",
            f"ip address add {UPLINK}/24 dev far0",
            "ip link set far0 up",
            f"ip route add default via {FAR}",
            f"nsenter --net=/proc/{far.pid}/ns/net ip address add {FAR}/24 dev eth0",
            f"nsenter --net=/proc/{far.pid}/ns/net ip link set eth0 up",
            f"nsenter --net=/proc/{far.pid}/ns/net ip link set lo up",
        ):
            subprocess.run(line.split(), check=True, timeout=20)
        argv = ["nsenter", f"--net=/proc/{far.pid}/ns/net", "busybox", "httpd", "-f", "-p", str(PORT)]
        serving = subprocess.Popen([*argv, "-h", "/etc"])
        try:
            yield
        finally:
            serving.kill()
            serving.wait()
    finally:
        far.kill()
        far.wait()
        subprocess.run(["ip", "link", "delete", "far0"], timeout=20, check=False)


@pytest.fixture
async def runtime(engine: TestEngine, tmp_path: Path, inside: None) -> AsyncIterator[RememberingRuntime]:
    async with opened(engine, tmp_path) as made:
        yield made


async def started(runtime: RememberingRuntime, folder: Path, app: str) -> AppRun:
    (folder / app).mkdir()
    spec = replace(parse(MANIFEST), name=app)
    run = AppRun(group="group", app=app, epoch=1, spec=spec, volume_root=folder / app)
    await runtime.prepare(run)
    await runtime.freezable(run)
    await runtime.start(run)
    return run


async def reaches(runtime: RememberingRuntime, run: AppRun, service: str, host: str) -> bool:
    words = ["nc", "-w", "2", host, str(PORT), "-e", "true"]
    return (await runtime.exec(run.key, service, words, timeout=20.0)).exit_code == 0


async def healthy(runtime: RememberingRuntime, run: AppRun) -> RunStatus:
    for _ in range(200):
        if (found := await seen(runtime, run)).health is Health.HEALTHY:
            return found
    raise AssertionError(found)


async def test_services_reach_whom_they_share_a_network_with_and_nobody_else(
    runtime: RememberingRuntime, internet: None, tmp_path: Path
) -> None:
    first = await started(runtime, tmp_path, "first")
    second = await started(runtime, tmp_path, "second")  # a copy beside it: nothing clashes
    addresses = {
        (c.key, c.service): c.address for run in (first, second) for c in await runtime._containers(run.key)
    }
    db, foreign = addresses[first.key, "db"], addresses[second.key, "db"]
    there = {
        ("web", "db"): True,
        ("web", "database"): True,
        ("web", "other"): True,
        ("db", "web"): True,
        ("beside", "127.0.0.1"): True,
        ("beside", "web"): True,
        ("other", "web"): True,
        ("other", "db"): False,
        ("other", "database"): False,
        ("other", db): False,
        ("plain", "web"): False,
        ("plain", db): False,
        # The internet: not from a network without a way out, however it is written.
        ("web", FAR): True,
        ("other", FAR): True,
        ("plain", FAR): True,
        ("db", FAR): False,
        ("beside", FAR): False,
        # The device, and a copy of the app.
        ("db", UPLINK): False,
        ("web", UPLINK): False,
        ("web", foreign): False,
        ("db", foreign): False,
    }
    assert {pair: await reaches(runtime, first, *pair) for pair in there} == there

    # Routes and probes come in all the same.
    for run in (first, second):
        found = await healthy(runtime, run)
        endpoints = {s.name: s.endpoints for s in found.services}
        for service in ("db", "web"):
            ((_, host, port),) = endpoints[service]
            with socket.create_connection((host, port), timeout=5.0) as end:
                end.sendall(b"GET /passwd HTTP/1.0\r\n\r\n")
                assert end.recv(100).startswith(b"HTTP/")

    await runtime.kill(first.key)
    await runtime.remove(first.key)
    left = await runtime._engine.networks(runtime._labels())
    assert {n.labels["org.fractal-homeserver.run"] for n in left} == {second.key}
    assert not await reaches(runtime, second, "db", FAR)
    assert await reaches(runtime, second, "web", "db")
    table = ["nft", "-j", "list", "set", "inet", runtime._isolation.table, "closed"]
    said = json.loads(subprocess.run(table, check=True, timeout=20, capture_output=True).stdout)
    (elements,) = [item["set"]["elem"] for item in said["nftables"] if "set" in item]
    assert elements == [n.bridge for n in left if n.closed]
    await runtime.kill(second.key)
    await runtime.remove(second.key)
    assert not await runtime._engine.networks(runtime._labels())


async def test_who_has_anothers_network_is_started_again_with_it(
    runtime: RememberingRuntime, tmp_path: Path
) -> None:
    run = await started(runtime, tmp_path, "app")
    assert await reaches(runtime, run, "beside", "127.0.0.1")
    containers = {c.service: c for c in await runtime._containers(run.key)}
    await runtime._engine.signal(containers["db"].id, "SIGKILL", "test")
    for _ in range(200):
        if not (await runtime._engine.inspect(containers["db"].id)).running:
            break
    for _ in range(200):  # its back-off, if any
        await runtime.start(run)
        if (await runtime._engine.inspect(containers["db"].id)).running:
            break
    for _ in range(200):
        await runtime.start(run)
        now = {c.service: c for c in await runtime._containers(run.key)}
        if now["beside"].running and now["beside"].started != containers["beside"].started:
            break
    await healthy(runtime, run)
    assert await reaches(runtime, run, "beside", "127.0.0.1")
    assert await reaches(runtime, run, "beside", "web")


async def test_who_has_anothers_network_gets_the_new_one_where_a_start_was_broken_off(
    runtime: RememberingRuntime, tmp_path: Path
) -> None:
    run = await started(runtime, tmp_path, "app")
    containers = {c.service: c for c in await runtime._containers(run.key)}
    db = containers["db"].id
    await runtime._engine.signal(db, "SIGKILL", "test")
    for _ in range(200):
        if not (await runtime._engine.inspect(db)).running:
            break
    await runtime._engine.start(db, "test")
    await runtime.start(run)
    now = {c.service: c for c in await runtime._containers(run.key)}
    assert now["beside"].started != containers["beside"].started
    assert now["web"].started == containers["web"].started
    assert await reaches(runtime, run, "beside", "web")
    await runtime.start(run)
    again = {c.service: c for c in await runtime._containers(run.key)}
    assert again["beside"].started == now["beside"].started


async def test_what_has_no_way_out_keeps_none_where_the_firewall_was_cleared_and_another_app_set_it_anew(
    runtime: RememberingRuntime, internet: None, tmp_path: Path
) -> None:
    first = await started(runtime, tmp_path, "first")
    table = ["nft", "delete", "table", "inet", runtime._isolation.table]
    subprocess.run(table, check=True, timeout=20)
    await started(runtime, tmp_path, "second")
    assert not await reaches(runtime, first, "db", FAR)
    assert await reaches(runtime, first, "web", FAR)
    assert await reaches(runtime, first, "web", "db")
