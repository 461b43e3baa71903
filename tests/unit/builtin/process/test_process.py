"""The process runtime beyond the contract: environments, what it refuses, the guard, faults."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

import fractal.catalog
from fractal.api.app import AppRun, AppSpec, HealthSpec, Limits, Port, ProcessSpec, ServiceSpec
from fractal.api.context import Context
from fractal.api.errors import BackendError, InvalidInput, Misconfigured
from fractal.api.runtime import Freezable, Health, RunStatus
from fractal.builtin.process.config import ProcessConfig
from fractal.builtin.process.health import Watch
from fractal.builtin.process.logs import rotate
from fractal.builtin.process.placeholders import fill
from fractal.builtin.process.runtime import ProcessRuntime, open_process
from fractal.builtin.process.starting import BACKOFF, MAX_BACKOFF, wait_left, wanted_again
from fractal.builtin.process.state import ServiceRecord, load
from fractal.guard.client import GuardClient, GuardService
from fractal.guard.launch import end_guard, ensure_guard
from fractal.manifest import parse
from fractal.manifest.values import Given
from fractal.testing.context import real_context

SLEEP = "import time\nwhile True: time.sleep(0.05)"


class Device:
    """Context, guard and runtime of one device."""

    def __init__(self, folder: Path, context: Context, guard: GuardClient, runtime: ProcessRuntime) -> None:
        self.folder = folder
        self.context = context
        self.guard = guard
        self.runtime = runtime

    def run(self, *services: ServiceSpec, spec: AppSpec | None = None, **secrets: str) -> AppRun:
        root = self.folder / "root"
        root.mkdir(exist_ok=True)
        made = spec or AppSpec(name="app", services=services, volumes=("data",))
        return AppRun(group="g", app="app", epoch=1, spec=made, volume_root=root, secrets=secrets)

    async def up(self, run: AppRun) -> None:
        await self.guard.register(await self.runtime.freezable(run))
        await self.guard.grant({run.key: self.context.clock.boottime() + 600})
        await self.runtime.start(run)

    async def seen(self) -> RunStatus:
        (status,) = await self.runtime.observe()
        return status


@pytest.fixture
async def device(tmp_path: Path) -> AsyncIterator[Device]:
    async with real_context(tmp_path) as context:
        guard = await ensure_guard(tmp_path / "guard", run=context.run, clock=context.clock)
        context = replace(context, guard_socket=guard.path)
        try:
            async with open_process(context, ProcessConfig()) as runtime:
                yield Device(tmp_path, context, guard, runtime)
        finally:
            await guard.close()
            await (await ensure_guard(tmp_path / "guard", run=context.run, clock=context.clock)).close()
            await end_guard(tmp_path / "guard", clock=context.clock)


def service(program: str = SLEEP, name: str = "main", **options: object) -> ServiceSpec:
    process = ProcessSpec(argv=("{python}", "-S", "-c", program))
    return replace(ServiceSpec(name=name, process=process), **options)  # type: ignore[arg-type]


async def until(condition: object) -> None:
    assert callable(condition)
    async with asyncio.timeout(60):
        while not await condition():
            await asyncio.sleep(0.02)


# -- what it refuses


def test_services_that_are_only_images_are_refused_by_name(tmp_path: Path) -> None:
    runtime = ProcessRuntime.__new__(ProcessRuntime)
    spec = parse("services: {web: {image: nginx}, db: {image: postgres}}")
    found = runtime.check(spec)
    assert [(refusal.service, refusal.key) for refusal in found] == [("web", "process"), ("db", "process")]
    assert all("image" in refusal.reason for refusal in found)


@pytest.mark.parametrize(
    ("bad", "key"),
    [
        (service("{port.nothing}"), "process.argv[3]"),
        (service("{data.other}"), "process.argv[3]"),
        (service("{secret.KEY}"), "process.argv[3]"),
        (service("{secret.KEY}", secrets=("KEY",)), "process.argv[3]"),
        (service(env={"A": "{file.x}"}), "environment.A"),
        (replace(service(), process=ProcessSpec(argv=())), "process.argv"),
        (
            replace(service(), process=ProcessSpec(argv=("a",), requirements=("radicale",))),
            "process.requirements",
        ),
        (
            replace(service(), process=ProcessSpec(argv=("a",), requirements=("--index-url=x",))),
            "process.requirements",
        ),
        (
            replace(service(), process=ProcessSpec(argv=("a",), requirements=("a==1 @ file:///x",))),
            "process.requirements",
        ),
        (service(stop_signal="SIGSTOP"), "stop_signal"),
        (service(limits=Limits(cpus=1.0)), "cpus"),
        (service(user="1000"), "user"),
        (service(options={"read_only": "true", "init": "false", "labels": '{"a":"b"}'}), "read_only"),
        (service(options={"uts": '"host"'}), "uts"),
        (service(ports=(Port(name="a", container=0, protocol="sctp"),)), "ports.a"),
    ],
)
async def test_what_it_cannot_honour_is_refused_before_anything_starts(
    device: Device, bad: ServiceSpec, key: str
) -> None:
    run = device.run(bad)
    assert [refusal.key for refusal in device.runtime.check(run.spec)] == [key]
    with pytest.raises(BackendError, match="main"):
        await device.runtime.prepare(run)
    with pytest.raises(BackendError, match="main"):
        await device.up(run)
    assert (await device.guard.status())[run.key].pids == ()


async def test_a_volume_that_is_a_link_is_not_followed(device: Device, tmp_path: Path) -> None:
    """An app (or a hostile snapshot) may leave links; the runtime never writes through one."""
    outside = tmp_path / "outside"
    outside.mkdir()
    run = device.run(service())
    (run.volume_root / "data").symlink_to(outside)
    with pytest.raises(BackendError, match="data"):
        await device.up(run)
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize("key", ["../x", "a/b", "", ".", "..", "a..b", "x" * 300])
async def test_a_run_key_is_never_a_path(device: Device, key: str) -> None:
    for call in (device.runtime.stop, device.runtime.kill, device.runtime.remove):
        with pytest.raises(BackendError, match="cannot name a run"):
            await call(key)


async def test_without_a_guard_it_does_not_open(tmp_path: Path) -> None:
    async with real_context(tmp_path) as context:
        with pytest.raises(Misconfigured, match="guard"):
            async with open_process(context, ProcessConfig()):
                pass
        context = replace(context, guard_socket=tmp_path / "nothing.sock")
        with pytest.raises(BackendError, match="guard") as caught:
            async with open_process(context, ProcessConfig()):
                pass
        assert caught.value.retryable


# -- the guard


async def test_nothing_starts_without_proof(device: Device) -> None:
    run = device.run(service())
    with pytest.raises(BackendError, match="register"):
        await device.runtime.start(run)
    await device.guard.register(Freezable(run=run.key))
    with pytest.raises(BackendError, match="frozen") as caught:
        await device.runtime.start(run)
    assert caught.value.retryable
    assert (await device.guard.status())[run.key].pids == ()


async def test_a_frozen_run_is_stopped_without_running_again(device: Device) -> None:
    note = (
        "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: (open('bye', 'w'), sys.exit()))\n"
    )
    run = device.run(service(note + SLEEP))
    await device.up(run)
    await device.guard.freeze(run.key)
    assert (await device.seen()).frozen
    await device.runtime.stop(run.key)
    assert await device.runtime.observe() == []
    assert not (device.context.runtime_dir / "runs" / run.key / "scratch" / "bye").exists()


async def test_unpausing_does_not_thaw(device: Device) -> None:
    run = device.run(service())
    await device.up(run)
    await device.runtime.pause(run.key)
    await device.guard.freeze(run.key)
    await device.runtime.unpause(run.key)
    assert (await device.seen()).frozen


async def test_a_pause_of_a_killed_agent_ends_with_the_next_one(device: Device) -> None:
    run = device.run(service())
    await device.up(run)
    await device.runtime.pause(run.key)
    async with open_process(device.context, ProcessConfig()):
        assert not (await device.guard.status())[run.key].paused


async def test_after_the_guards_death_the_app_is_started_anew(device: Device) -> None:
    run = device.run(service())
    await device.up(run)
    pid, _ = await device.guard.ping()
    os.kill(pid, signal.SIGKILL)
    await (
        await ensure_guard(device.folder / "guard", run=device.context.run, clock=device.context.clock)
    ).close()
    assert await device.runtime.observe() == []
    await device.up(run)
    status = await device.seen()
    assert [(s.running, s.restarts) for s in status.services] == [(True, 0)]


async def test_a_lost_record_does_not_hide_what_runs(device: Device) -> None:
    run = device.run(service())
    await device.up(run)
    (device.context.runtime_dir / "runs" / run.key / "state.json").write_text("garbage")
    status = await device.seen()
    assert (status.group, status.app, status.epoch) == ("g", "app", 1)
    await device.runtime.kill(run.key)
    assert await device.runtime.observe() == []


async def test_a_kill_during_a_start_wins(device: Device) -> None:
    """A start that waits for its first service starts no second one after the kill."""
    setup = service(name="setup", restart="no")
    main = service("open('/' + 'x')", name="late", depends_on={"setup": "completed"})
    run = device.run(setup, main)
    task = asyncio.create_task(device.up(run))

    async def running() -> bool:
        return (
            bool((await device.guard.status())[run.key].pids)
            if run.key in await device.guard.status()
            else False
        )

    await until(running)
    await device.runtime.kill(run.key)
    with pytest.raises(BackendError):
        await task
    state = (await device.guard.status())[run.key]
    assert (state.pids, set(state.services)) == ((), {"setup"})


# -- what a service gets


async def test_secrets_are_neither_in_argv_nor_left_on_disk(device: Device) -> None:
    program = "import os, time\nopen(os.environ['OUT'], 'w').write(os.environ['KEY'])\n" + SLEEP
    spec = service(program, secrets=("KEY",), env={"KEY": "{secret.KEY}", "OUT": "{data.data}/out"})
    run = device.run(spec, KEY="canary-5d41402a")
    await device.up(run)
    out = run.volume_root / "data" / "out"

    async def written() -> bool:
        return out.exists() and out.read_text() == "canary-5d41402a"

    await until(written)
    (pid,) = (await device.guard.status())[run.key].pids
    assert b"canary" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    out.unlink()
    assert "canary" not in repr(run)
    for path in device.folder.rglob("*"):
        if path.is_file():
            assert b"canary" not in path.read_bytes(), path


async def test_a_missing_secret_is_named(device: Device) -> None:
    with pytest.raises(BackendError, match="KEY"):
        await device.up(device.run(service(secrets=("KEY",))))


async def test_limits_and_files_arrive(device: Device) -> None:
    program = (
        "import resource, sys, time\n"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE)[0], open(sys.argv[1]).read(), flush=True)\n" + SLEEP
    )
    process = ProcessSpec(
        argv=("{python}", "-S", "-c", program, "{file.conf}"), files={"conf": 'a={run} {"json": 1}'}
    )
    run = device.run(ServiceSpec(name="main", process=process, limits=Limits(files=77)))
    await device.up(run)
    scratch = device.context.runtime_dir / "runs" / run.key / "scratch"

    async def logged() -> bool:
        text = b"".join([chunk async for chunk in device.runtime.logs(run.key, "main")]).decode()
        return text == f'77 a={scratch} {{"json": 1}}\n'

    await until(logged)
    conf = device.context.runtime_dir / "runs" / run.key / "files" / "main" / "conf"
    assert conf.stat().st_mode & 0o777 == 0o600


async def test_the_agents_environment_stays_with_the_agent(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENT_TOKEN", "canary")
    run = device.run(service("import os\nprint(sorted(os.environ), flush=True)\n" + SLEEP))
    await device.up(run)

    async def logged() -> bool:
        return b"PATH" in b"".join([chunk async for chunk in device.runtime.logs(run.key, "main")])

    await until(logged)
    assert b"AGENT_TOKEN" not in b"".join([chunk async for chunk in device.runtime.logs(run.key, "main")])


async def test_ports_stay_with_a_run_and_move_away_from_a_squatter(device: Device) -> None:
    run = device.run(service(ports=(Port(name="web", container=0),)))
    await device.up(run)
    ((_, host, port),) = (await device.seen()).services[0].endpoints
    await device.runtime.stop(run.key)
    await device.up(run)
    assert (await device.seen()).services[0].endpoints == (("web", host, port),)
    await device.runtime.stop(run.key)
    server = await asyncio.start_server(lambda _r, w: w.close(), host, port)
    async with server:
        await device.up(run)
        assert (await device.seen()).services[0].endpoints != (("web", host, port),)


async def test_a_fixed_port_in_use_is_an_error_that_names_it(device: Device) -> None:
    server = await asyncio.start_server(lambda _r, w: w.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        with pytest.raises(BackendError, match=str(port)):
            await device.up(device.run(service(ports=(Port(name="web", container=port),))))


# -- restarts, health, logs


async def test_a_crashing_service_backs_off(device: Device) -> None:
    run = device.run(service("raise SystemExit('no luck')"))
    await device.up(run)

    async def ended() -> bool:
        return not (await device.seen()).services[0].running

    await until(ended)
    status = (await device.seen()).services[0]
    assert (status.exit_code, status.health, status.detail) == (1, Health.STOPPED, "no luck")
    await device.runtime.start(run)  # within the back-off: nothing happens, and nothing is wrong
    record = load(device.context.runtime_dir / "runs" / run.key)
    assert record is not None
    assert record.services["main"].restarts <= 1


def test_the_back_off_grows_to_a_bound() -> None:
    ended = GuardService(pid=1, started=0.0, code=1, ended=100.0)
    waits = [wait_left(ServiceRecord("a", streak=n), ended, 100.0) for n in range(40)]
    assert waits[0] == BACKOFF
    assert waits == sorted(waits)
    assert waits[-1] == MAX_BACKOFF
    assert wait_left(ServiceRecord("a"), ended, 200.0) < 0


def test_restart_policies() -> None:
    table = {
        (policy, code): wanted_again(ServiceRecord("a", restart=policy), code)
        for policy in ("always", "on-failure", "no")
        for code in (0, 1)
    }
    assert [key for key, wanted in table.items() if wanted] == [
        ("always", 0),
        ("always", 1),
        ("on-failure", 1),
    ]


def test_health_forgives_during_the_start_and_then_counts() -> None:
    watch = Watch(HealthSpec(retries=2, start_period=10.0), started=100.0)
    seen = []
    for when, good in (
        (105.0, False),
        (111.0, False),
        (112.0, False),
        (113.0, True),
        (114.0, False),
        (115.0, False),
    ):
        watch.judge(when, good=good, detail="refused")
        seen.append(watch.health.value)
    assert seen == ["starting", "starting", "unhealthy", "healthy", "healthy", "unhealthy"]
    assert watch.detail == "refused"


def test_logs_are_rotated_once_too_large(tmp_path: Path) -> None:
    path = tmp_path / "main.log"
    rotate(path, 10)
    with path.open("ab", buffering=0) as writer:
        writer.write(b"0123456789abc\n")
        rotate(path, 10)
        writer.write(b"next\n")
    assert path.read_bytes() == b"next\n"
    assert (tmp_path / "main.log.1").read_bytes() == b"0123456789abc\n"


def test_of_a_log_that_was_flooded_only_the_end_is_copied(tmp_path: Path) -> None:
    """Gigabytes may come between two looks, and whoever copies them answers nobody meanwhile."""
    path = tmp_path / "main.log"
    path.write_bytes(b"flood\n" * 10_000 + b"the end\n")
    rotate(path, 10)
    assert path.read_bytes() == b""
    assert (tmp_path / "main.log.1").read_bytes() == (b"flood\n" * 10 + b"the end\n")[-40:]
    assert (tmp_path / "main.log.1").stat().st_mode & 0o777 == 0o600


def test_other_braces_are_left_alone() -> None:
    assert fill('{"a": {run}} {x} {port} ${run}', {"run": "R"}) == '{"a": R} {x} {port} $R'
    with pytest.raises(KeyError):
        fill("{port.web}", {})


async def test_a_health_command_gets_its_placeholders(device: Device) -> None:
    """And a failing one is seen: the file it looks for appears later."""
    look = "import os, sys; sys.exit(not os.path.exists(sys.argv[1]))"
    health = HealthSpec(
        test=("{python}", "-S", "-c", look, "{data.data}/ready"), interval=0.05, retries=1, start_period=0.0
    )
    run = device.run(service(health=health))
    await device.up(run)

    async def is_(health: Health) -> bool:
        return (await device.seen()).health is health

    await until(lambda: is_(Health.UNHEALTHY))
    (run.volume_root / "data" / "ready").touch()
    await until(lambda: is_(Health.HEALTHY))


# -- a real app


async def test_radicale_runs_and_keeps_its_data(device: Device) -> None:
    pytest.importorskip("radicale")
    text = (Path(next(iter(fractal.catalog.__path__))) / "radicale.yml").read_text()
    spec = parse(text, "radicale.yml", given=Given(values={"LOGIN": "alice"}))
    (radicale,) = spec.services
    assert radicale.process is not None
    # From this interpreter's own packages, as tests may not ask an index.
    local = replace(radicale, process=replace(radicale.process, requirements=()))
    run = replace(
        device.run(spec=replace(spec, services=(local,))), secrets={"LOGIN": "alice", "PASSWORD": "x"}
    )
    entry = b"BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:x\r\nBEGIN:VEVENT\r\nUID:1\r\nDTSTART:20300101T000000Z\r\nSUMMARY:Tea\r\nEND:VEVENT\r\nEND:VCALENDAR\r\n"
    for round_number in range(2):
        await device.up(run)

        async def healthy() -> bool:
            return (await device.seen()).health is Health.HEALTHY

        await until(healthy)
        ((_, host, port),) = (await device.seen()).services[0].endpoints
        base = f"http://{host}:{port}/alice"
        for credentials in ("", "alice:y", "mallory:x"):
            assert await curl(device, base + "/cal/", "PROPFIND", b"", credentials=credentials) == 401
        if round_number == 0:
            assert await curl(device, base + "/cal/", "MKCALENDAR", b"") == 201
            assert await curl(device, base + "/cal/1.ics", "PUT", entry) == 201
        assert await curl(device, base + "/cal/1.ics", "GET", b"", expect=b"SUMMARY:Tea") == 200
        await device.runtime.stop(run.key)
        await device.runtime.remove(run.key)
    assert (run.volume_root / "data").is_dir()


async def curl(
    device: Device, url: str, method: str, body: bytes, *, credentials: str = "alice:x", expect: bytes = b""
) -> int:
    """Status of a request; without `credentials` a stranger's."""
    source = (
        "import sys, urllib.error as e, urllib.request as u\n"
        "r = u.Request(sys.argv[1], method=sys.argv[2], data=sys.stdin.buffer.read() or None,\n"
        "              headers={'Authorization': sys.argv[3], 'Content-Type': 'text/calendar'})\n"
        "try:\n    a = u.urlopen(r, timeout=30)\nexcept e.HTTPError as error:\n    a = error\n"
        "print(a.status, a.read())\n"
    )
    basic = f"Basic {base64.b64encode(credentials.encode()).decode()}" if credentials else ""
    done = await device.context.run([sys.executable, "-c", source, url, method, basic], stdin=body)
    status, _, text = done.stdout.partition(b" ")
    assert expect in text
    return int(status)


def test_a_hostile_manifest_never_reaches_the_runtime() -> None:
    with pytest.raises(InvalidInput, match="files"):
        parse("services: {a: {x-homeserver: {process: {argv: ['{run}/../../x'], files: {../x: y}}}}}")
