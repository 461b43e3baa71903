"""Every Compose key that is honoured, seen in the running container."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fractal_containers.check import refusals
from fractal_containers.config import EngineConfig
from fractal_containers.runtime import ContainerRuntime
from fractal_containers.testing import TestEngine, opened
from fractal_containers.testing_images import BUSYBOX
from fractal_podman.engine import PodmanEngine

from fractal.api.app import AppRun
from fractal.manifest import Given, parse
from fractal.manifest.env_files import named

MANIFEST = f"""
name: keys of all kinds
x-homeserver: {{secrets: {{generate: [PASSWORD, TOKEN]}}}}
services:
  setup: {{image: "{BUSYBOX}", command: ["true"], restart: "no"}}
  plain:
    image: {BUSYBOX}
    command: sh -c 'echo "one word" > /tmp/said; sleep 1000'
    container_name: theirs
    pull_policy: always
    networks: [default]
    restart: unless-stopped
    depends_on: {{setup: {{condition: service_completed_successfully}}}}
  given:
    image: {BUSYBOX}
    entrypoint: [/bin/sleep]
    command: ["1000"]
    environment: [COLOUR=blue, "URL=db://app:${{PASSWORD}}@db"]
    volumes: ["pages:/pages", "./conf:/conf:ro"]
    ports: ["8080:80", "53/udp"]
    expose: ["9000"]
    user: "1000:1000"
    working_dir: /tmp
    hostname: oak
    extra_hosts: ["elm:10.1.2.3", "ash=10.1.2.4"]
    stop_signal: SIGINT
    stop_grace_period: 3s
    labels: {{maker: Ada, price: 5$$, paths: "^/(a|b)($|/)$1"}}
    x-homeserver: {{secrets: [TOKEN]}}
  bounded:
    image: {BUSYBOX}
    init: true
    read_only: true
    tmpfs: ["/scratch:size=1m,mode=1777"]
    shm_size: 32m
    ulimits: {{nofile: {{soft: 512, hard: 1024}}, nproc: 600}}
    mem_limit: 64m
    memswap_limit: 96m
    cpus: 0.5
    pids_limit: 77
    platform: linux/amd64
    healthcheck: {{test: [CMD, test, -d, /scratch], interval: 1s, timeout: 2s, retries: 4, start_period: 7s}}
  plainer:
    image: {BUSYBOX}
    build: ./here
    network_mode: none
    privileged: false
    env_file: [given.env, {{path: absent.env, required: false}}]
    environment: {{COLOUR: green}}
    deploy:
      mode: replicated
      replicas: 1
      resources: {{limits: {{memory: 48m, cpus: "0.25", pids: 55}}, reservations: {{memory: 24m}}}}
      restart_policy: {{condition: on-failure, max_attempts: 3}}
  watched:
    image: {BUSYBOX}
    network_mode: bridge
    dns: [203.0.113.53]
    dns_search: [oak.example, elm.example]
    dns_opt: ["ndots:2", use-vc]
    cpu_quota: 30000
    cpu_period: 120000
    logging: {{driver: json-file, options: {{max-size: 1m, max-file: "3"}}}}
  able:
    image: "{BUSYBOX}"
    cap_add: [NET_RAW, cap_net_admin, MKNOD]
    cap_drop: [CHOWN]
    networks: {{default: {{aliases: [strong.example]}}}}
  reaching:
    image: {BUSYBOX}
    devices: ["/dev/fuse:/dev/fused:ro"]
    sysctls: {{net.ipv4.ip_unprivileged_port_start: 99}}
    group_add: [44, "1234"]
    cpu_shares: 77
    oom_score_adj: 300
    security_opt: ["no-new-privileges:true", "seccomp:unconfined"]
    pid: host
    ipc: host
    cap_add: [SYS_PTRACE]
    tty: true
    volumes: ["/HOST/PATH:/theirs:ro", "./tool.sh:/usr/bin/tool.sh:ro"]
    configs: [greeting, {{source: whole, target: /etc/whole.conf}}]
    secrets: [held]
    command: [sh, -c, "echo ${{PASSWORD}} > /tmp/shown; cat"]
    healthcheck: {{test: "grep -q ${{PASSWORD}} /tmp/shown"}}
  alike:
    image: {BUSYBOX}
    uts: host
    cgroup: host
    cap_add: [MKNOD]
    device_cgroup_rules: ["c 10:237 rwm"]
    mem_limit: -1
    ports: ["9899:9899/sctp"]
    expose: ["7000-7002"]
    env_file: [{{path: /srv/raw.env, format: raw}}, ~/own.env]
    secrets: [theirs]
    volumes: ["desk:/desk"]
    command: [sh, -c, "echo penned > /desk/note; sleep 1000"]
  filtered:
    image: {BUSYBOX}
    security_opt: ["seccomp:./filter.json"]
    volumes: ["/sys:/sys:ro", "/dev/shm:/dev/shm:ro", "shown:/run/secrets"]
    logging: {{options: {{max-size: 1g, max-file: 30}}}}
  lodger: {{image: "{BUSYBOX}", network_mode: "container:the_host_", depends_on: [beside]}}
  beside: {{container_name: the_host_, image: "{BUSYBOX}", volumes: ["desk:/shared:ro"], depends_on: [alike]}}
  at-home: {{image: "{BUSYBOX}", network_mode: host, ports: ["8123:8123"]}}
  unwatched: {{image: "{BUSYBOX}", healthcheck: {{disable: true}}}}
networks:
  default: {{driver: macvlan, driver_opts: {{parent: eth0}}}}
volumes:
  desk: {{driver_opts: {{type: tmpfs, device: tmpfs, o: "size=2m,mode=0755"}}}}
configs:
  greeting: {{content: "hello ${{PASSWORD}}"}}
  whole: {{file: ./whole.conf}}
secrets:
  held: {{environment: GIVEN}}
  theirs: {{file: /srv/secrets/theirs.txt}}
"""
ENV_FILE = """\
# what a file beside the manifest holds
COLOUR=red
export SHAPE="round ball"  # quoted
EDGE=a#b
LINK=db://${PASSWORD}@db
"""
ALLOWED = frozenset(
    {"device:/dev/fuse", "security-opt:seccomp=unconfined", "host-pid", "host-ipc", "host-network"}
    | {"capability:SYS_PTRACE", "visible-secret:PASSWORD"}
    | {"security-opt:seccomp=profile", "host-path:/sys", "host-path:/dev/shm"}
    | {"host-uts", "host-cgroup", "device-rule:c:10:237:rwm"}
)
BESIDE = {
    "given.env": ENV_FILE,
    "root/srv/raw.env": "RAW='kept' $HOME\n",
    "home/own.env": "OWN='taken off'\n",
    "root/srv/secrets/theirs.txt": "from afar",
    "filter.json": json.dumps(
        {
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}],
        }
    ),
}
CHOWN, NET_ADMIN, NET_RAW = 0, 12, 13
"""Bits of capability sets, capabilities(7)."""
PASSWORD, TOKEN = "correct-horse", "battery-staple"


@dataclass
class World:
    """The app, started once."""

    runner: asyncio.Runner
    runtime: ContainerRuntime
    run: AppRun
    inspected: dict[str, Any]

    def inside(self, service: str, *argv: str) -> str:
        """What a command in the service says."""
        return self.runner.run(self.runtime.exec(self.run.key, service, argv)).output.decode()


@pytest.fixture(scope="module")
def world(engine: TestEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("keys")
    root = folder / "root"
    root.mkdir()
    assert set(named(MANIFEST)) >= {"absent.env", *BESIDE}
    (folder / "theirs").mkdir()
    (folder / "theirs" / "film").write_text("moving")
    spec = parse(
        MANIFEST.replace("/HOST/PATH", str(folder / "theirs")),
        files={**BESIDE, "whole.conf": "$all of it", "tool.sh": "#!/bin/sh\necho tooled\n"},
        given=Given(values={"GIVEN": "given"}, allowed=ALLOWED | {f"host-path:{folder / 'theirs'}"}),
    )
    run = AppRun(
        group="group",
        app="app",
        epoch=3,
        spec=spec,
        volume_root=root,
        secrets={"PASSWORD": PASSWORD, "TOKEN": TOKEN, "GIVEN": "given"},
    )
    client = engine.api()
    with engine.network(), asyncio.Runner() as runner:
        stack = contextlib.AsyncExitStack()
        try:
            runtime = runner.run(
                stack.enter_async_context(
                    opened(engine, folder, allow=("all",), capabilities=("SYS_PTRACE",))
                )
            )
            assert list(runtime.check(spec)) == []
            runner.run(runtime.prepare(run))
            runner.run(runtime.start(run))
            listed = client.containers(all=True, filters={"label": "org.fractal-homeserver.app=app"})
            mine = [client.inspect_container(c["Id"]) for c in listed]
            mine = [c for c in mine if c["Config"]["Labels"]["org.fractal-homeserver.epoch"] == "3"]
            inspected = {c["Config"]["Labels"]["org.fractal-homeserver.service"]: c for c in mine}
            yield World(runner, runtime, run, inspected)
        finally:
            runner.run(stack.aclose())
            client.close()


def host(name: str) -> Callable[[Any], Any]:
    return lambda c: c["HostConfig"][name]


def ulimits(c: Any) -> dict[str, tuple[int, int]]:
    """By Compose's names."""
    limits = c["HostConfig"]["Ulimits"]
    return {u["Name"].removeprefix("RLIMIT_").lower(): (u["Soft"], u["Hard"]) for u in limits}


def stop_signal(c: Any) -> str:
    """Podman says the number."""
    found = str(c["Config"]["StopSignal"])
    return signal.Signals(int(found)).name if found.isdecimal() else found


def check(c: Any) -> dict[str, Any]:
    """Podman is given no interval, as the runtime repeats checks there."""
    return {"Interval": 10**9, **c["Config"]["Healthcheck"]}


def cpus(c: Any) -> float:
    """Docker counts billionths, Podman microseconds of a period."""
    found = c["HostConfig"]
    return (
        float(found["NanoCpus"]) / 1e9 if found["NanoCpus"] else float(found["CpuQuota"]) / found["CpuPeriod"]
    )


def restart_label(c: Any) -> str:
    """The agent's to do; see `restart-never-by-engine`."""
    return str(c["Config"]["Labels"]["org.fractal-homeserver.restart"])


def capabilities(name: str) -> Callable[[Any], Any]:
    """Newer engines say them with their prefix."""
    return lambda c: sorted(word.removeprefix("CAP_") for word in c["HostConfig"][name])


def config(name: str) -> Callable[[Any], Any]:
    return lambda c: c["Config"][name]


@pytest.mark.parametrize(
    ("service", "seen", "value"),
    [
        pytest.param("setup", lambda c: c["State"]["ExitCode"], 0, id="depends_on-completed"),
        pytest.param("plain", config("Image"), None, id="image"),
        pytest.param(
            "plain", config("Cmd"), ["sh", "-c", 'echo "one word" > /tmp/said; sleep 1000'], id="command"
        ),
        pytest.param("plain", lambda c: c["Name"] == "/theirs", False, id="container_name-rewritten"),
        pytest.param(
            "plain",
            host("RestartPolicy"),
            {"Name": "no", "MaximumRetryCount": 0},
            id="restart-never-by-engine",
        ),
        pytest.param("given", config("Entrypoint"), ["/bin/sleep"], id="entrypoint"),
        pytest.param("given", config("User"), "1000:1000", id="user"),
        pytest.param("given", config("WorkingDir"), "/tmp", id="working_dir"),
        pytest.param("given", config("Hostname"), "oak", id="hostname"),
        pytest.param("given", stop_signal, "SIGINT", id="stop_signal"),
        pytest.param(
            "given",
            lambda c: sorted(c["Config"]["ExposedPorts"]),
            ["53/udp", "80/tcp", "9000/tcp"],
            id="expose",
        ),
        pytest.param(
            "given",
            lambda c: sorted(c["HostConfig"]["ExtraHosts"]),
            ["ash:10.1.2.4", "elm:10.1.2.3"],
            id="extra_hosts",
        ),
        pytest.param("given", lambda c: c["Config"]["Labels"]["maker"], "Ada", id="labels"),
        pytest.param("given", lambda c: c["Config"]["Labels"]["price"], "5$", id="labels-dollar"),
        pytest.param(
            "given", lambda c: c["Config"]["Labels"]["paths"], "^/(a|b)($|/)$1", id="labels-lone-dollar"
        ),
        pytest.param("bounded", host("Init"), True, id="init"),
        pytest.param("bounded", host("ReadonlyRootfs"), True, id="read_only"),
        pytest.param(
            "bounded",
            lambda c: {path: flags[:17] for path, flags in c["HostConfig"]["Tmpfs"].items()},
            {"/scratch": "size=1m,mode=1777"},
            id="tmpfs",
        ),
        pytest.param("bounded", host("ShmSize"), 32 << 20, id="shm_size"),
        pytest.param("bounded", host("Memory"), 64 << 20, id="mem_limit"),
        pytest.param("bounded", host("NanoCpus"), 500_000_000, id="cpus"),
        pytest.param("bounded", host("MemorySwap"), 96 << 20, id="memswap_limit"),
        pytest.param("bounded", host("PidsLimit"), 77, id="pids_limit"),
        pytest.param(
            "bounded",
            ulimits,
            {"nofile": (512, 1024), "nproc": (600, 600)},
            id="ulimits",
        ),
        pytest.param(
            "bounded",
            check,
            {
                "Test": ["CMD", "test", "-d", "/scratch"],
                "Interval": 10**9,
                "Timeout": 2 * 10**9,
                "StartPeriod": 7 * 10**9,
                "Retries": 4,
            },
            id="healthcheck",
        ),
        pytest.param("plainer", host("NetworkMode"), "none", id="network_mode-none"),
        pytest.param("plainer", host("Memory"), 48 << 20, id="deploy-limits-memory"),
        pytest.param("plainer", cpus, 0.25, id="deploy-limits-cpus"),
        pytest.param("plainer", host("PidsLimit"), 55, id="deploy-limits-pids"),
        pytest.param("plainer", host("MemoryReservation"), 24 << 20, id="deploy-reservations-memory"),
        pytest.param("plainer", restart_label, "on-failure", id="deploy-restart_policy"),
        pytest.param("plainer", config("Image"), None, id="build-beside-image"),
        pytest.param("watched", host("Dns"), ["203.0.113.53"], id="dns"),
        pytest.param("watched", host("DnsSearch"), ["oak.example", "elm.example"], id="dns_search"),
        pytest.param("watched", host("DnsOptions"), ["ndots:2", "use-vc"], id="dns_opt"),
        pytest.param("watched", cpus, 0.25, id="cpu_quota"),
        pytest.param(
            "watched", lambda c: c["HostConfig"]["NetworkMode"] == "none", False, id="network_mode-bridge"
        ),
        pytest.param(
            "reaching",
            lambda c: [(d["PathOnHost"], d["PathInContainer"]) for d in c["HostConfig"]["Devices"]],
            [("/dev/fuse", "/dev/fused")],
            id="devices",
        ),
        pytest.param("reaching", host("PidMode"), "host", id="pid"),
        pytest.param("reaching", host("CpuShares"), 77, id="cpu_shares"),
        pytest.param("reaching", host("OomScoreAdj"), 300, id="oom_score_adj"),
        pytest.param("reaching", config("OpenStdin"), True, id="tty-keeps-stdin-open"),
        pytest.param("alike", host("UTSMode"), "host", id="uts"),
        pytest.param("alike", host("Memory"), 0, id="mem_limit-none"),
        pytest.param(
            "alike",
            lambda c: sorted(c["Config"]["ExposedPorts"]),
            ["7000/tcp", "7001/tcp", "7002/tcp"],
            id="expose-range",
        ),
        pytest.param("at-home", host("NetworkMode"), "host", id="network_mode-host"),
        pytest.param("unwatched", config("Healthcheck"), {"Test": ["NONE"]}, id="healthcheck-disable"),
        pytest.param("plain", capabilities("CapDrop"), ["NET_RAW"], id="no-raw-sockets-unasked"),
        pytest.param("plain", host("SecurityOpt"), ["no-new-privileges"], id="no-new-privileges"),
        pytest.param("plain", host("Privileged"), False, id="never-privileged"),
    ],
)
def test_the_engine_was_told(world: World, service: str, seen: Callable[[Any], Any], value: Any) -> None:
    if value is None:
        value = world.runner.run(world.runtime.image_digest(BUSYBOX))
    assert seen(world.inspected[service]) == value


@pytest.mark.parametrize(
    ("service", "argv", "output"),
    [
        pytest.param("plain", ["cat", "/tmp/said"], "one word", id="command-line-is-split-as-a-shell-would"),
        pytest.param(
            "given", ["sh", "-c", "echo $COLOUR $URL"], f"blue db://app:{PASSWORD}@db", id="environment"
        ),
        pytest.param("given", ["cat", "/run/secrets/TOKEN"], TOKEN, id="secret-as-file"),
        pytest.param("given", ["ls", "/run/secrets"], "TOKEN", id="only-the-unnamed-secrets-are-files"),
        pytest.param(
            "plainer",
            ["sh", "-c", "echo $COLOUR/$SHAPE/$EDGE/$LINK"],
            f"green/round ball/a#b/db://{PASSWORD}@db",
            id="env_file",
        ),
        pytest.param("plainer", ["ls", "/sys/class/net"], "lo\n", id="network_mode-none"),
        pytest.param("given", ["id", "-u"], "1000", id="user"),
        pytest.param("given", ["pwd"], "/tmp", id="working_dir"),
        pytest.param("given", ["hostname"], "oak", id="hostname"),
        pytest.param(
            "given",
            ["sh", "-c", "grep -c . /etc/hosts >/dev/null; cat /etc/hosts"],
            "10.1.2.3\telm",
            id="extra_hosts",
        ),
        pytest.param(
            "given", ["sh", "-c", "touch /conf/x 2>&1 || true"], "Read-only file system", id="volumes-ro"
        ),
        pytest.param(
            "bounded", ["sh", "-c", "touch /x 2>&1 || true"], "Read-only file system", id="read_only"
        ),
        pytest.param("reaching", ["cat", "/theirs/film"], "moving", id="host-path"),
        pytest.param(
            "reaching",
            ["sh", "-c", "touch /theirs/x 2>&1 || true"],
            "Read-only file system",
            id="host-path-ro",
        ),
        pytest.param("reaching", ["/usr/bin/tool.sh"], "tooled", id="file-beside-the-manifest"),
        pytest.param("reaching", ["cat", "/greeting"], f"hello {PASSWORD}", id="configs-content"),
        pytest.param("reaching", ["cat", "/etc/whole.conf"], "$all of it", id="configs-file"),
        pytest.param("reaching", ["cat", "/run/secrets/held"], "given", id="secrets-environment"),
        pytest.param("reaching", ["ls", "/run/secrets"], "held\n", id="secrets-only-what-is-asked-for"),
        pytest.param("reaching", ["cat", "/tmp/shown"], PASSWORD, id="visible-secret"),
        pytest.param("reaching", ["id", "-G"], "44 1234", id="group_add"),
        pytest.param(
            "reaching", ["cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start"], "99", id="sysctls"
        ),
        pytest.param("reaching", ["grep", "Seccomp:", "/proc/self/status"], "Seccomp:\t0", id="security_opt"),
        pytest.param(
            "reaching", ["ls", "-l", "/proc/self/ns/ipc"], str(Path("/proc/self/ns/ipc").readlink()), id="ipc"
        ),
        pytest.param(
            "filtered",
            ["sh", "-c", "touch /tmp/x && mkdir /tmp/y 2>&1 || true"],
            "Operation not permitted",
            id="seccomp-profile",
        ),
        pytest.param("filtered", ["grep", "Seccomp:", "/proc/1/status"], "Seccomp:\t2", id="seccomp-filter"),
        pytest.param(
            "filtered",
            ["sh", "-c", "echo kept > /run/secrets/x && cat /run/secrets/x"],
            "kept",
            id="no-secrets",
        ),
        pytest.param("filtered", ["ls", "/sys/class/net"], "lo", id="sys-of-the-device"),
        pytest.param(
            "filtered",
            ["stat", "-c", "%i", "/dev/shm"],
            str(Path("/dev/shm").stat().st_ino),
            id="dev-shm-of-the-device",
        ),
        pytest.param("alike", ["sh", "-c", 'echo "$RAW/$OWN"'], "'kept' $HOME/taken off", id="env_file-raw"),
        pytest.param("alike", ["cat", "/run/secrets/theirs"], "from afar", id="secrets-file-elsewhere"),
        pytest.param(
            "alike", ["ls", "-l", "/proc/self/ns/uts"], str(Path("/proc/self/ns/uts").readlink()), id="uts"
        ),
        pytest.param(
            "alike",
            ["ls", "-l", "/proc/self/ns/cgroup"],
            str(Path("/proc/self/ns/cgroup").readlink()),
            id="cgroup",
        ),
        pytest.param(
            "alike",
            ["sh", "-c", "mknod /tmp/x c 10 237; cat /tmp/x 2>&1 || true"],
            "Invalid argument",
            id="device_cgroup_rules",
        ),
        pytest.param(
            "able",
            ["sh", "-c", "mknod /tmp/x c 10 237; cat /tmp/x 2>&1 || true"],
            "Operation not permitted",
            id="no-devices-unasked",
        ),
        pytest.param("alike", ["grep", " /desk ", "/proc/mounts"], "size=2048k", id="driver_opts-tmpfs"),
        pytest.param("lodger", ["nslookup", "the_host_"], "Name:\tthe_host_", id="container_name-as-it-is"),
        pytest.param("beside", ["cat", "/shared/note"], "penned", id="driver_opts-shared"),
        pytest.param(
            "beside",
            ["sh", "-c", "touch /shared/x 2>&1 || true"],
            "Read-only file system",
            id="driver_opts-ro",
        ),
        pytest.param("reaching", ["ls", "-l", "/dev/fused"], "10, 229", id="devices"),
        pytest.param("bounded", ["sh", "-c", "touch /scratch/x && echo done"], "done", id="tmpfs"),
        pytest.param(
            "bounded", ["grep", "Max processes", "/proc/1/limits"], f"{'600':<20} {'600':<20}", id="ulimits"
        ),
        pytest.param("bounded", ["cat", "/proc/1/comm"], "-init", id="init"),
        pytest.param(
            "bounded",
            ["nslookup", "given"],
            "Name:\tgiven",
            id="services-know-each-other",
        ),
        pytest.param("bounded", ["nslookup", "theirs"], "Name:\ttheirs", id="container_name-is-known"),
        pytest.param("bounded", ["nslookup", "strong.example"], "Name:\tstrong.example", id="aliases"),
        pytest.param(
            "plain", ["sh", "-c", "cat /proc/self/status"], "NoNewPrivs:\t1", id="no-new-privileges"
        ),
    ],
)
def test_the_container_has_it(world: World, service: str, argv: list[str], output: str) -> None:
    assert output in world.inside(service, *argv)


@pytest.mark.parametrize(
    ("service", "has", "lacks"),
    [("able", {NET_ADMIN, NET_RAW}, {CHOWN}), ("plain", {CHOWN}, {NET_ADMIN, NET_RAW})],
)
def test_capabilities_are_those_asked_for(world: World, service: str, has: set[int], lacks: set[int]) -> None:
    """Asked of the kernel: what an engine tells leaves out what it thinks of as usual."""
    lines = world.inside(service, "cat", "/proc/1/status").splitlines()
    (bounding,) = (int(line.split()[1], 16) for line in lines if line.startswith("CapBnd"))
    assert all(bounding >> bit & 1 for bit in has)
    assert not any(bounding >> bit & 1 for bit in lacks)


def test_volumes_are_the_folders_of_the_volume_root(world: World) -> None:
    (world.run.volume_root / "pages" / "page").write_text("from outside")
    assert world.inside("given", "cat", "/pages/page") == "from outside"
    assert sorted(p.name for p in world.run.volume_root.iterdir()) == ["conf", "pages", "shown"]


def test_ports_are_published_on_loopback_only(world: World) -> None:
    published = world.inspected["given"]["NetworkSettings"]["Ports"]
    assert {b["HostIp"] for bindings in published.values() for b in bindings or ()} == {"127.0.0.1"}
    (status,) = (
        s for r in world.runner.run(world.runtime.observe()) for s in r.services if s.name == "given"
    )
    assert {name for name, _, _ in status.endpoints} == {"80", "53-udp"}
    assert all(port not in (0, 80, 8080) for _, _, port in status.endpoints)


def test_a_service_in_the_network_of_the_device_is_found_at_its_own_port(world: World) -> None:
    (status,) = (
        s for r in world.runner.run(world.runtime.observe()) for s in r.services if s.name == "at-home"
    )
    assert status.endpoints == (("8123", "127.0.0.1", 8123),)


def test_a_device_gives_apps_nothing_of_its_own_unless_it_says_so(world: World) -> None:
    """Whatever whoever installed the app allowed it."""
    found = {(r.service, r.key) for r in refusals(world.run.spec, EngineConfig())}
    keys = ("volumes", "devices", "security_opt", "pid", "ipc", "cap_add")
    assert found == {
        *(("reaching", key) for key in keys),
        *(("filtered", key) for key in ("volumes", "security_opt")),
        *(("alike", key) for key in ("uts", "cgroup", "device_cgroup_rules")),
        ("at-home", "network_mode"),
    }
    config = EngineConfig(allow=("host-path:/srv/", "device:/dev/dri", "host-pid"))
    assert config.allows("host-path:/srv/media") and config.allows("host-pid")
    assert not any(
        map(config.allows, ("host-path:/srvx", "host-path:/", "device:/dev/dr", "host-ipc", "gpu"))
    )


def test_logs_are_bounded_as_asked(world: World) -> None:
    """Docker keeps three files; Podman one that is as large as the two older ones."""
    container, engine = world.inspected["watched"], world.runtime._engine
    if isinstance(engine, PodmanEngine):
        path = f"/containers/{container['Id']}/json"
        found = world.runner.run(engine.ask("looking", engine._json, "GET", path))
        assert found["HostConfig"]["LogConfig"]["Size"] == "2.097MB"
    else:
        assert container["HostConfig"]["LogConfig"]["Config"] == {"max-size": str(1 << 20), "max-file": "3"}


def test_an_app_whose_file_wants_a_macvlan_is_in_a_bridge_of_its_own(
    world: World, engine: TestEngine
) -> None:
    client = engine.api()
    try:
        names = {name for one in world.inspected.values() for name in one["NetworkSettings"]["Networks"]}
        names -= {"host", "none", ""}
        assert names and {client.inspect_network(name)["Driver"] for name in names} == {"bridge"}
    finally:
        client.close()


def test_secrets_are_not_for_everybody_on_the_device(world: World) -> None:
    folder = world.runtime._folder("secrets", world.run.key)
    assert (folder / "given" / "TOKEN").read_text() == TOKEN
    assert all(parent.stat().st_mode & 0o077 == 0 for parent in (folder.parent, Path(folder)))
    assert PASSWORD not in repr(world.run)
