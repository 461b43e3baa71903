"""Where an engine, a guard or an agent that hangs or dies would cost data: each trap on a real engine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import docker
import pytest
from fractal_containers.filling import filled
from fractal_containers.labels import SERVICE, container_name, run_name
from fractal_containers.testing import RememberingRuntime, TestEngine, again, opened
from fractal_containers.testing_images import BUSYBOX, PYTHON, busybox_image

from fractal.api.app import AppRun, AppSpec, HealthSpec, Mount, Port, ServiceSpec
from fractal.api.errors import BackendError, NotFound
from fractal.api.runtime import Health
from fractal.guard.client import GuardClient
from fractal.guard.launch import end_guard, ensure_guard
from fractal.shell.clock import SystemClock
from fractal.shell.process import ProcessRun
from fractal.testing.runtime_parts import quiet, running, seen, service_where, size, until, until_async

pytestmark = pytest.mark.usefixtures("inside")
BEAT = "while true; do echo -n . >> /data/beat; sleep 0.02; done"
DEVICE = "0" * 20


@pytest.fixture
async def runtime(engine: TestEngine, tmp_path: Path, inside: None) -> AsyncIterator[RememberingRuntime]:
    async with opened(engine, tmp_path, timeout=15.0) as made:
        yield made


@pytest.fixture
async def guard(tmp_path: Path) -> AsyncIterator[GuardClient]:
    folder, clock = tmp_path / "guard", SystemClock()
    client = await ensure_guard(folder, run=ProcessRun(), clock=clock)
    try:
        yield client
    finally:
        await client.close()
        await end_guard(folder, clock=clock)


def beating(name: str = "main", **options: object) -> ServiceSpec:
    mount = Mount(volume="data", target="/data")
    made = ServiceSpec(name=name, image=BUSYBOX, argv=("sh", "-c", BEAT), mounts=(mount,), stop_grace=1.0)
    return replace(made, **options)  # type: ignore[arg-type]  # fields of ServiceSpec


def run_of(folder: Path, *services: ServiceSpec, epoch: int = 1, app: str = "app") -> AppRun:
    root = folder / f"root-{app}-{epoch}"
    root.mkdir(exist_ok=True)
    spec = AppSpec(name="An app", services=services or (beating(),), volumes=("data",))
    return AppRun(group="group", app=app, epoch=epoch, spec=spec, volume_root=root)


async def up(runtime: RememberingRuntime, run: AppRun) -> None:
    await runtime.prepare(run)
    await runtime.freezable(run)
    await runtime.start(run)
    await until(lambda: size(run, "beat") > 0)


async def granted(guard: GuardClient, runtime: RememberingRuntime, run: AppRun) -> None:
    await guard.register(await runtime.freezable(run))
    await guard.grant({run.key: SystemClock().boottime() + 600})
    await up(runtime, run)


# -- the guard


async def test_the_guard_freezes_while_the_engine_hangs(
    engine: TestEngine, runtime: RememberingRuntime, guard: GuardClient, tmp_path: Path
) -> None:
    run = run_of(tmp_path, beating(), beating("second"))
    await granted(guard, runtime, run)
    with engine.hung():
        await guard.freeze(run.key)
        assert await quiet(run, "beat")
    assert (await seen(runtime, run)).frozen
    await guard.grant({run.key: SystemClock().boottime() + 700})
    before = size(run, "beat")
    await until(lambda: size(run, "beat") > before)


async def test_a_deadline_that_passes_freezes_without_anybody(
    engine: TestEngine, runtime: RememberingRuntime, guard: GuardClient, tmp_path: Path
) -> None:
    run = run_of(tmp_path)
    await granted(guard, runtime, run)
    other = run_of(tmp_path, app="other")
    await guard.register(await runtime.freezable(other))
    started = asyncio.Event()

    async def renew() -> None:
        """As an agent does: what is frozen while it starts hangs its engine."""
        while not started.is_set():
            await guard.grant({other.key: SystemClock().boottime() + 4})
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(started.wait(), 1)

    await guard.grant({other.key: SystemClock().boottime() + 4})
    async with asyncio.TaskGroup() as group:
        group.create_task(renew())
        try:
            await up(runtime, other)
        finally:
            started.set()
    with engine.hung():
        await until_async(lambda: quiet(other, "beat"))
        assert not await quiet(run, "beat")


async def test_nothing_starts_without_a_grant(
    runtime: RememberingRuntime, guard: GuardClient, tmp_path: Path
) -> None:
    run = run_of(tmp_path)
    await runtime.prepare(run)
    await guard.register(await runtime.freezable(run))
    with pytest.raises(BackendError, match="frozen by the guard"):
        await runtime.start(run)
    assert not await running(runtime, run)


async def test_neither_pause_nor_unpause_nor_start_thaws_what_the_guard_froze(
    runtime: RememberingRuntime, guard: GuardClient, tmp_path: Path
) -> None:
    run = run_of(tmp_path)
    await granted(guard, runtime, run)
    await runtime.pause(run.key)
    await guard.freeze(run.key)
    await runtime.unpause(run.key)
    assert await quiet(run, "beat")
    with pytest.raises(BackendError, match="frozen"):
        await runtime.start(run)
    with pytest.raises(BackendError, match="frozen"):
        await runtime.exec(run.key, "main", ["true"], timeout=2.0)
    assert await quiet(run, "beat")


@pytest.mark.parametrize("paused", [False, True])
async def test_what_is_frozen_is_killed_frozen(
    runtime: RememberingRuntime, guard: GuardClient, tmp_path: Path, paused: bool
) -> None:
    run = run_of(tmp_path)
    await granted(guard, runtime, run)
    if paused:
        await runtime.pause(run.key)
    await guard.freeze(run.key, final=True)
    before = size(run, "beat")
    await runtime.kill(run.key)
    assert size(run, "beat") == before
    assert not await running(runtime, run)
    assert not runtime._cgroup(run.key).pids()


async def test_what_is_frozen_is_killed_while_the_engine_hangs(
    engine: TestEngine, runtime: RememberingRuntime, guard: GuardClient, tmp_path: Path
) -> None:
    run = run_of(tmp_path)
    await granted(guard, runtime, run)
    with engine.hung():
        await guard.freeze(run.key)
        before = size(run, "beat")
        await runtime.kill(run.key)
        assert not runtime._cgroup(run.key).pids()
        assert size(run, "beat") == before
    await until_async(lambda: ended(runtime, run))
    await runtime.remove(run.key)


async def ended(runtime: RememberingRuntime, run: AppRun) -> bool:
    return not await running(runtime, run)


# -- the engine


async def test_what_a_hung_engine_starts_belatedly_stands_still(
    engine: TestEngine, runtime: RememberingRuntime, tmp_path: Path
) -> None:
    """`start` was sent, the engine hung, the run was killed; then the engine goes on and starts it all the same."""
    run = run_of(tmp_path)
    await up(runtime, run)
    await runtime.stop(run.key)
    before = size(run, "beat")
    (container,) = await runtime._containers(run.key)
    client = engine.api()
    with engine.hung():
        sent = asyncio.get_running_loop().run_in_executor(None, lambda: _start(client, container.id))
        await runtime.kill(run.key)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(2.0):
            await asyncio.shield(sent)
    assert size(run, "beat") == before
    await runtime.kill(run.key)
    await sent
    client.close()
    assert size(run, "beat") == before


def _start(client: docker.APIClient, identity: str) -> None:
    with contextlib.suppress(docker.errors.APIError):  # killed while it was starting
        client.start(identity)


async def test_a_hung_engine_is_an_error_in_bounded_time(
    engine: TestEngine, runtime: RememberingRuntime, tmp_path: Path
) -> None:
    await up(runtime, run_of(tmp_path))
    async with again(engine, tmp_path, timeout=0.5) as hasty:
        with engine.hung(), pytest.raises(BackendError, match="no answer in time") as caught:
            await hasty.observe()
        assert caught.value.retryable
    with engine.hung():  # cancelling does not wait for the engine
        looking = asyncio.create_task(runtime.observe())
        await asyncio.sleep(0.05)
        looking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await looking


async def test_an_engine_that_is_not_there_is_an_error(engine: TestEngine, tmp_path: Path) -> None:
    gone = type(engine)(tmp_path / "nowhere")
    async with again(gone, tmp_path) as runtime:
        with pytest.raises(BackendError, match="does the engine run"):
            await runtime.observe()
        await runtime.kill("group.app.1")  # nothing of it runs: the kernel says so
        with pytest.raises(BackendError, match="does the engine run"):
            _ = [chunk async for chunk in runtime.save_image(BUSYBOX)]


async def test_pausing_needs_no_engine(
    engine: TestEngine, runtime: RememberingRuntime, tmp_path: Path
) -> None:
    run = run_of(tmp_path)
    await up(runtime, run)
    with engine.hung():
        await runtime.pause(run.key)
        assert await quiet(run, "beat")
        await runtime.unpause(run.key)
        before = size(run, "beat")
        await until(lambda: size(run, "beat") > before)


# -- the agent


async def test_a_pause_that_a_killed_agent_left_is_undone(
    engine: TestEngine, runtime: RememberingRuntime, tmp_path: Path
) -> None:
    run = run_of(tmp_path)
    await up(runtime, run)
    await runtime.pause(run.key)
    assert await quiet(run, "beat")
    async with again(engine, tmp_path):
        before = size(run, "beat")
        await until(lambda: size(run, "beat") > before)


async def test_old_epochs_are_found_and_removed_by_the_next_agent(
    engine: TestEngine, runtime: RememberingRuntime, api: docker.APIClient, tmp_path: Path
) -> None:
    old, new = run_of(tmp_path, epoch=3), run_of(tmp_path, epoch=4)
    await up(runtime, old)
    await up(runtime, new)
    async with again(engine, tmp_path) as other:
        assert {r.epoch for r in await other.observe()} == {3, 4}
        (name,) = (n.name for n in await other._engine.networks(other._labels(old.key)))
        await other.kill(old.key)
        await other.remove(old.key)
        assert {r.epoch for r in await other.observe()} == {4}
        assert not api.networks(names=[f"^{name}$"])
        assert not other._cgroup(old.key).outer.exists()
        assert await running(other, new)


async def test_a_network_without_containers_is_a_leftover_too(
    runtime: RememberingRuntime, api: docker.APIClient, tmp_path: Path
) -> None:
    run = run_of(tmp_path)
    await up(runtime, run)
    await runtime.kill(run.key)
    for container in await runtime._containers(run.key):
        api.remove_container(container.id, force=True)
    status = await seen(runtime, run)
    assert status.services == ()
    await runtime.remove(run.key)
    assert [r for r in await runtime.observe() if r.app == "app"] == []


async def test_two_devices_on_one_engine_do_not_see_each_other(
    engine: TestEngine, runtime: RememberingRuntime, tmp_path: Path
) -> None:
    run = run_of(tmp_path)
    await up(runtime, run)
    (tmp_path / "other").mkdir()
    async with opened(engine, tmp_path / "other", device="1" * 20) as other:
        assert await other.observe() == []
        await other.kill(run.key)
        assert not await quiet(run, "beat")
        await up(other, run_of(tmp_path / "other"))  # the same app and epoch, under names of its own
    assert await running(runtime, run)


def test_no_two_copies_share_a_name(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    others = [replace(run, epoch=2), replace(run, app="b"), replace(run, group="g")]
    names = {container_name(DEVICE, r, "main") for r in (run, *others)} | {container_name("x", run, "main")}
    assert len(names) == 5
    assert run_name(DEVICE, "a.b.1") != run_name(DEVICE, "a.b.11")


# -- starting and ending


async def test_no_engine_restart_and_everything_anew_after_a_stop(
    runtime: RememberingRuntime, tmp_path: Path
) -> None:
    """A task that is done is done, until the run is stopped: then it is done again, also where its policy is `no`."""
    setup = beating("setup", argv=("sh", "-c", "echo -n x >> /data/setup"), restart="no")
    run = run_of(tmp_path, setup, beating(depends_on={"setup": "completed"}))
    await up(runtime, run)
    await runtime.start(run)
    assert size(run, "setup") == 1
    await runtime.stop(run.key)
    await runtime.start(run)
    assert size(run, "setup") == 2


async def test_a_process_that_dies_is_not_restarted_by_the_engine(
    runtime: RememberingRuntime, tmp_path: Path
) -> None:
    run = run_of(tmp_path)
    await up(runtime, run)
    for pid in runtime._cgroup(run.key).pids():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 9)
    service = await service_where(runtime, run, "main", lambda s: not s.running)
    assert service.exit_code == 137
    assert await quiet(run, "beat")
    await runtime.start(run)
    assert (await service_where(runtime, run, "main", lambda s: s.running)).restarts == 1


async def test_the_engines_own_check_decides_and_is_not_waited_for(
    runtime: RememberingRuntime, tmp_path: Path
) -> None:
    """With an interval of a minute the engine's first look is a minute away; ours is not. When it fails, both agree."""
    slow = HealthSpec(test=("test", "-f", "/data/well"), interval=60.0, timeout=5.0, start_period=120.0)
    quick = HealthSpec(test=("false",), interval=0.2, timeout=5.0, retries=2, start_period=0.0)
    run = run_of(tmp_path, beating(health=slow), beating("ill", health=quick))
    await up(runtime, run)
    assert (await service_where(runtime, run, "main", lambda s: s.running)).health is Health.STARTING
    (run.volume_root / "data" / "well").touch()
    await service_where(runtime, run, "main", lambda s: s.health is Health.HEALTHY)
    await service_where(runtime, run, "ill", lambda s: s.health is Health.UNHEALTHY)


async def test_a_port_that_nobody_listens_on_is_not_healthy(
    runtime: RememberingRuntime, tmp_path: Path
) -> None:
    """The engine's proxy accepts connections on the published port whether or not anybody is behind it."""
    health = HealthSpec(port="web", interval=0.1, timeout=2.0, retries=2, start_period=0.0)
    web = (Port(name="web", container=8080),)
    run = run_of(tmp_path, beating(health=health, ports=web))
    await up(runtime, run)
    await service_where(runtime, run, "main", lambda s: s.health is Health.UNHEALTHY)


async def test_an_image_that_is_nowhere_is_an_error_that_names_it(
    runtime: RememberingRuntime, tmp_path: Path
) -> None:
    run = run_of(tmp_path, beating(image="localhost:1/no/such:7"))
    with pytest.raises(BackendError, match="localhost:1/no/such:7"):
        await runtime.prepare(run)


async def test_a_program_that_cannot_be_started_is_named(runtime: RememberingRuntime, tmp_path: Path) -> None:
    run = run_of(tmp_path, beating("odd", entrypoint=("/no/such",)))
    await runtime.prepare(run)
    with pytest.raises(BackendError, match=r"service odd does not start: .*/no/such"):
        await runtime.start(run)


async def test_a_volume_that_leads_elsewhere_is_refused(runtime: RememberingRuntime, tmp_path: Path) -> None:
    run = run_of(tmp_path)
    (run.volume_root / "data").symlink_to("/etc")
    await runtime.prepare(run)
    with pytest.raises(BackendError, match="not a folder"):
        await runtime.start(run)


async def test_an_empty_volume_begins_as_in_the_image_and_a_full_one_stays(
    runtime: RememberingRuntime, api: docker.APIClient, tmp_path: Path
) -> None:
    """With its owner and mode, and with links as links."""
    run = run_of(tmp_path, beating(mounts=(Mount(volume="data", target="/srv/site"),), argv=("sleep", "99")))
    await runtime.prepare(run)
    await runtime.start(run)
    data = run.volume_root / "data"
    assert (data.stat().st_uid, data.stat().st_mode & 0o777) == (1000, 0o750)
    assert (data / "outside").readlink() == Path("/etc")
    assert [path.name for path in run.volume_root.iterdir()] == ["data"]
    await runtime.stop(run.key)
    (data / "outside").unlink()
    (data / "mine").touch()
    await runtime.start(run)
    assert [path.name for path in data.iterdir()] == ["mine"]
    assert not [v for v in api.volumes()["Volumes"] or () if v["Name"].startswith("fhs-")]


async def test_what_fills_a_volume_is_no_service_whatever_its_image_says(
    engine: TestEngine, runtime: RememberingRuntime, tmp_path: Path
) -> None:
    """Else it would be started in a service's place, by the agent after one that was killed while it filled."""
    image = busybox_image(engine, "labelled:1", "labelled", [f"LABEL {SERVICE}=main"])
    run = run_of(tmp_path)
    await runtime.freezable(run)
    async with filled(runtime._context, runtime._engine, run, image, "/srv/site", "filling") as source:
        assert source is not None
        assert [c.service for c in await runtime._containers(run.key)] == [""]
    assert await runtime._containers(run.key) == []


# -- images


async def test_an_image_tells_its_machine(runtime: RememberingRuntime) -> None:
    assert await runtime.image_architecture(BUSYBOX) == platform.machine()
    with pytest.raises(NotFound):
        await runtime.image_architecture("no/such:1")


async def test_an_image_goes_through_a_stream_to_another_name(
    runtime: RememberingRuntime, api: docker.APIClient
) -> None:
    digest = await runtime.image_digest(BUSYBOX)
    archive = b"".join([chunk async for chunk in runtime.save_image(BUSYBOX)])

    async def chunks(data: bytes) -> AsyncIterator[bytes]:
        for at in range(0, len(data), 100_000):
            yield data[at : at + 100_000]

    pinned = "example.org/some/app@sha256:" + "ab" * 32
    try:
        for name in ("loaded/again:2", "loaded/again", pinned):
            assert await runtime.load_image(name, chunks(archive)) == digest
            assert await runtime.image_digest(name) == digest
        with pytest.raises(BackendError):
            await runtime.load_image("loaded/bad:1", chunks(b"not an archive" * 1000))
        with pytest.raises(BackendError):
            await runtime.load_image("loaded/bad:1", chunks(archive[: len(archive) // 2]))
        with pytest.raises(BackendError):
            await runtime.image_digest("loaded/bad:1")
    finally:
        for name in (
            "loaded/again:2",
            "loaded/again:latest",
            "localhost/fractal-homeserver-pinned:" + "ab" * 32,
        ):
            with contextlib.suppress(docker.errors.NotFound):
                api.remove_image(name)
    assert await runtime.image_digest(PYTHON) != digest
