"""What every runtime must do, as tests. An author subclasses `RuntimeContract`; see docs/reference/plugin-api.md."""

from __future__ import annotations

import asyncio
import contextlib
from abc import abstractmethod
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from fractal.api.app import AppRun, AppSpec, HealthSpec, Mount, ServiceSpec
from fractal.api.building import SupportsBuild
from fractal.api.errors import BackendError, NotFound
from fractal.api.runtime import Health, Runtime, SupportsImages, SupportsNews, SupportsTerminal
from fractal.testing.runtime_parts import (
    BEAT,
    DAEMON,
    LIMIT,
    POLITE,
    QUIET,
    SERVER,
    STUBBORN,
    VOLUME,
    log,
    logged,
    notes,
    quiet,
    running,
    seen,
    service_where,
    size,
    started_again,
    status_of,
    until,
    until_async,
)
from fractal.testing.suite import Contract, requires


class RuntimeContract(Contract[Runtime]):
    """Every runtime passes this. Programs are Python sources without dependencies."""

    optional: ClassVar = {
        "SupportsBuild": SupportsBuild,
        "SupportsImages": SupportsImages,
        "SupportsNews": SupportsNews,
        "SupportsTerminal": SupportsTerminal,
    }

    @abstractmethod
    def service(self, name: str, program: str) -> ServiceSpec:
        """A service that runs the Python source `program` with the volume in folder `$DATA`; where it must listen is in
        `$HOST` and `$PORT` (a port named `web`). Environment that the suite sets is added to `env`."""

    async def allow(self, run: AppRun, backend: Runtime) -> None:
        """Let the run's processes run, if a guard or the like must agree. Called before `start`."""

    @abstractmethod
    def reopen(self, tmp_path: Path) -> AbstractAsyncContextManager[Runtime]:
        """Another runtime on the same folders, as after a restart of the agent, while `backend` is still open."""

    def app(
        self, tmp_path: Path, *services: ServiceSpec, app: str = "app", epoch: int = 1, **secrets: str
    ) -> AppRun:
        """A run of these services."""
        root = tmp_path / f"root-{app}-{epoch}"
        root.mkdir(exist_ok=True)
        (root / VOLUME).mkdir(exist_ok=True)
        spec = AppSpec(name=app, services=services, volumes=(VOLUME,))
        return AppRun(group="group", app=app, epoch=epoch, spec=spec, volume_root=root, secrets=secrets)

    def named(self, name: str, program: str, **options: Any) -> ServiceSpec:
        """`service`, with further fields; its program knows its name as `$NAME`."""
        made = self.service(name, program)
        env = {**made.env, "NAME": name, **options.pop("env", {})}
        mounts = made.mounts or (Mount(volume=VOLUME, target="/data"),)
        return replace(made, env=env, mounts=mounts, **{"stop_grace": 5.0, **options})

    async def up(self, backend: Runtime, run: AppRun) -> None:
        """Prepare, allow, start."""
        await backend.prepare(run)
        await self.allow(run, backend)
        await backend.start(run)

    @pytest.fixture(autouse=True)
    async def _leave_nothing(self, backend: Runtime) -> AsyncIterator[None]:
        yield
        for status in await backend.observe():
            await backend.kill(status.key)

    # -- starting and seeing

    async def test_a_plain_app_is_not_refused(self, backend: Runtime, tmp_path: Path) -> None:
        """`check` finds nothing wrong with what this suite runs."""
        assert list(backend.check(self.app(tmp_path, self.named("main", POLITE)).spec)) == []

    async def test_nothing_runs_before_start(self, backend: Runtime, tmp_path: Path) -> None:
        """`prepare` starts nothing."""
        run = self.app(tmp_path, self.named("main", POLITE))
        await backend.prepare(run)
        assert not any(s.running for r in await backend.observe() for s in r.services)
        assert not notes(run, "main")

    async def test_a_started_app_is_observed_with_its_labels(self, backend: Runtime, tmp_path: Path) -> None:
        """Group, app, epoch and services, running."""
        run = self.app(tmp_path, self.named("one", POLITE), self.named("two", POLITE), epoch=7)
        await self.up(backend, run)
        status = await seen(backend, run)
        assert (status.group, status.app, status.epoch) == ("group", "app", 7)
        assert {s.name for s in status.services if s.running} == {"one", "two"}
        assert not status.frozen

    async def test_starting_again_starts_nothing_twice(self, backend: Runtime, tmp_path: Path) -> None:
        """`start` is idempotent."""
        run = self.app(tmp_path, self.named("main", POLITE))
        await self.up(backend, run)
        await until(lambda: bool(notes(run, "main")))
        await backend.start(run)
        await backend.prepare(run)
        await asyncio.sleep(QUIET)
        assert notes(run, "main") == ["start"]

    async def test_another_agent_sees_and_kills_what_runs(self, backend: Runtime, tmp_path: Path) -> None:
        """Nothing that matters is in the runtime's memory."""
        run = self.app(tmp_path, self.named("main", POLITE))
        await self.up(backend, run)
        await until(lambda: size(run, "main") > 0)
        async with self.reopen(tmp_path) as other:
            status = await seen(other, run)
            assert (status.group, status.app, status.epoch) == ("group", "app", 1)
            assert [s.running for s in status.services] == [True]
            await other.start(run)
            await other.kill(run.key)
        assert await quiet(run, "main")
        assert notes(run, "main") == ["start"]

    async def test_the_endpoint_answers_and_health_is_seen(self, backend: Runtime, tmp_path: Path) -> None:
        """A port has an address on this device; health follows the HTTP check."""
        health = HealthSpec(http="/", port="web", interval=0.1, timeout=5.0)
        run = self.app(tmp_path, self.named("main", SERVER, health=health))
        await self.up(backend, run)
        service = await service_where(backend, run, "main", lambda s: s.health is Health.HEALTHY)
        ((name, host, port),) = service.endpoints
        assert name == "web"
        assert await status_of(host, port) == 200

    async def test_an_app_that_answers_500_never_gets_healthy(self, backend: Runtime, tmp_path: Path) -> None:
        """Running is not healthy."""
        health = HealthSpec(http="/", port="web", interval=0.05, timeout=5.0, retries=2, start_period=0.0)
        run = self.app(tmp_path, self.named("main", SERVER, health=health, env={"STATUS": "500"}))
        await self.up(backend, run)
        service = await service_where(backend, run, "main", lambda s: s.health is not Health.STARTING)
        assert service.health is Health.UNHEALTHY
        assert service.running

    @requires("SupportsNews")
    async def test_news_of_health_is_told(self, backend: Runtime, tmp_path: Path) -> None:
        """Whoever waits until a service is well is woken for it."""
        assert isinstance(backend, SupportsNews)
        health = HealthSpec(http="/", port="web", interval=0.1, timeout=5.0)
        run = self.app(tmp_path, self.named("main", SERVER, health=health))
        await self.up(backend, run)
        told = asyncio.create_task(backend.news())
        await service_where(backend, run, "main", lambda s: s.health is Health.HEALTHY)
        async with asyncio.timeout(LIMIT):
            await told

    async def test_two_apps_get_ports_of_their_own(self, backend: Runtime, tmp_path: Path) -> None:
        """Endpoints never collide."""
        one = self.app(tmp_path, self.named("main", SERVER), app="one")
        two = self.app(tmp_path, self.named("main", SERVER), app="two")
        await self.up(backend, one)
        await self.up(backend, two)
        ends = [
            (await service_where(backend, r, "main", lambda s: bool(s.endpoints))).endpoints
            for r in (one, two)
        ]
        assert ends[0][0][1:] != ends[1][0][1:]

    # -- what a service is given

    async def test_environment_and_secrets_arrive(self, backend: Runtime, tmp_path: Path) -> None:
        """A service sees its own variables; the volume's content is the volume root's."""
        run = self.app(
            tmp_path, self.named("main", BEAT + "note(os.environ['COLOUR'])\nbeat()", env={"COLOUR": "blue"})
        )
        await self.up(backend, run)
        await until(lambda: notes(run, "main") == ["start", "blue"])

    async def test_data_outlives_the_run(self, backend: Runtime, tmp_path: Path) -> None:
        """Stop, remove and start again: the volume is as it was left."""
        run = self.app(tmp_path, self.named("main", POLITE))
        await self.up(backend, run)
        await until(lambda: size(run, "main") > 0)
        await backend.stop(run.key)
        await backend.remove(run.key)
        assert notes(run, "main") == ["start", "bye"]
        await self.up(backend, run)
        await until(lambda: notes(run, "main") == ["start", "bye", "start"])

    # -- dependencies and restarts

    async def test_completed_dependencies_come_first(self, backend: Runtime, tmp_path: Path) -> None:
        """`completed` means exit 0 before the other one starts; what it was there for being done, the run is healthy."""
        setup = self.named("setup", BEAT + "time.sleep(0.3)\nnote('done')\n", restart="no")
        program = BEAT + "note(open(f'{data}/setup.notes').read().split()[-1])\nbeat()"
        run = self.app(tmp_path, setup, self.named("main", program, depends_on={"setup": "completed"}))
        await self.up(backend, run)
        await until(lambda: notes(run, "main") == ["start", "done"])
        service = await service_where(backend, run, "setup", lambda s: not s.running)
        assert (service.exit_code, service.health) == (0, Health.HEALTHY)
        assert (await seen(backend, run)).health is Health.HEALTHY
        await backend.stop(run.key)
        assert {r.health for r in await backend.observe()} <= {Health.STOPPED}

    async def test_a_failed_dependency_is_an_error_that_names_it(
        self, backend: Runtime, tmp_path: Path
    ) -> None:
        """The one that needs it is not started."""
        setup = self.named("setup", BEAT + "sys.exit(3)", restart="no")
        run = self.app(tmp_path, setup, self.named("main", POLITE, depends_on={"setup": "completed"}))
        with pytest.raises(BackendError, match="setup"):
            await self.up(backend, run)
        assert not notes(run, "main")

    async def test_a_service_that_does_not_start_is_named(self, backend: Runtime, tmp_path: Path) -> None:
        """A dependency that ends instead of getting healthy."""
        health = HealthSpec(http="/", port="web", interval=0.1, start_period=20.0)
        broken_one = self.named("database", BEAT + "sys.exit(1)", health=health, restart="no")
        run = self.app(tmp_path, broken_one, self.named("main", POLITE, depends_on={"database": "healthy"}))
        with pytest.raises(BackendError, match="database"):
            await self.up(backend, run)
        assert not notes(run, "main")

    async def test_an_ended_service_is_seen_and_started_again(self, backend: Runtime, tmp_path: Path) -> None:
        """`observe` tells the exit code, `start` applies the restart policy."""
        crash = self.named("crash", BEAT + "sys.exit(5)", restart="always")
        once = self.named("once", BEAT + "sys.exit(5)", restart="no")
        run = self.app(tmp_path, crash, once, self.named("main", POLITE))
        await self.up(backend, run)
        service = await service_where(backend, run, "once", lambda s: not s.running)
        assert service.exit_code == 5
        assert service.health is Health.STOPPED
        await until_async(lambda: started_again(backend, run, "crash"))
        assert notes(run, "once") == ["start"]
        assert notes(run, "main") == ["start"]

    # -- stopping

    async def test_stop_is_polite(self, backend: Runtime, tmp_path: Path) -> None:
        """The stop signal comes first, and there is time to act on it."""
        run = self.app(tmp_path, self.named("main", POLITE))
        await self.up(backend, run)
        await until(lambda: size(run, "main") > 0)
        await backend.stop(run.key)
        assert notes(run, "main") == ["start", "bye"]
        assert not await running(backend, run)

    async def test_stop_ends_what_ignores_the_signal(self, backend: Runtime, tmp_path: Path) -> None:
        """After the grace there is SIGKILL."""
        run = self.app(tmp_path, self.named("main", STUBBORN, stop_grace=0.3))
        await self.up(backend, run)
        await until(lambda: size(run, "main") > 0)
        await backend.stop(run.key)
        assert await quiet(run, "main")
        assert not await running(backend, run)

    async def test_stop_ends_daemons_too(self, backend: Runtime, tmp_path: Path) -> None:
        """A process that detached from its service belongs to the run all the same."""
        run = self.app(tmp_path, self.named("main", DAEMON))
        await self.up(backend, run)
        await until(lambda: size(run, "daemon") > 0)
        await backend.stop(run.key)
        assert await quiet(run, "daemon")

    async def test_kill_is_at_once_and_complete(self, backend: Runtime, tmp_path: Path) -> None:
        """Neither a last word nor a survivor."""
        run = self.app(tmp_path, self.named("main", POLITE), self.named("family", DAEMON))
        await self.up(backend, run)
        await until(lambda: size(run, "main") > 0 and size(run, "daemon") > 0)
        await backend.kill(run.key)
        assert await quiet(run, "main")
        assert await quiet(run, "daemon")
        assert notes(run, "main") == ["start"]
        assert not await running(backend, run)

    async def test_ending_twice_or_nothing_is_fine(self, backend: Runtime, tmp_path: Path) -> None:
        """`stop`, `kill` and `remove` of what does not exist do nothing."""
        run = self.app(tmp_path, self.named("main", POLITE))
        for end in (backend.stop, backend.kill, backend.remove):
            await end(run.key)
        await self.up(backend, run)
        for end in (backend.kill, backend.stop, backend.kill, backend.remove, backend.remove, backend.stop):
            await end(run.key)

    async def test_one_run_ends_and_the_others_go_on(self, backend: Runtime, tmp_path: Path) -> None:
        """Also two epochs of one app are two runs."""
        old, new = (self.app(tmp_path, self.named("main", POLITE), epoch=epoch) for epoch in (1, 2))
        other = self.app(tmp_path, self.named("main", POLITE), app="other")
        for run in (old, new, other):
            await self.up(backend, run)
            await until(lambda run=run: size(run, "main") > 0)  # type: ignore[misc]
        await backend.kill(old.key)
        await backend.remove(old.key)
        assert await quiet(old, "main")
        assert {r.epoch for r in await backend.observe() if r.app == "app"} == {2}
        assert await running(backend, new)
        assert await running(backend, other)

    async def test_remove_leaves_the_volume_root(self, backend: Runtime, tmp_path: Path) -> None:
        """And `observe` forgets the run."""
        run = self.app(tmp_path, self.named("main", POLITE))
        await self.up(backend, run)
        await until(lambda: size(run, "main") > 0)
        await backend.stop(run.key)
        before = size(run, "main")
        await backend.remove(run.key)
        assert size(run, "main") == before
        assert [r for r in await backend.observe() if r.app == "app"] == []

    async def test_a_cancelled_start_can_be_cleared(self, backend: Runtime, tmp_path: Path) -> None:
        """Cancel while it waits for a dependency; then `kill` leaves nothing, and it can be started again."""
        gate = tmp_path / "root-app-1" / VOLUME / "gate"
        program = BEAT + "\nwhile not os.path.exists(f'{data}/gate'): time.sleep(0.02)\n"
        setup = self.named("setup", program, restart="no")
        run = self.app(tmp_path, setup, self.named("main", POLITE, depends_on={"setup": "completed"}))
        task = asyncio.create_task(self.up(backend, run))
        await until(lambda: bool(notes(run, "setup")))
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await backend.kill(run.key)
        assert not await running(backend, run)
        gate.touch()
        await self.up(backend, run)
        await until(lambda: size(run, "main") > 0)

    # -- pausing, looking in

    async def test_pause_halts_everything(self, backend: Runtime, tmp_path: Path) -> None:
        """Between `pause` and `unpause` nothing writes."""
        run = self.app(tmp_path, self.named("main", DAEMON))
        await self.up(backend, run)
        await until(lambda: size(run, "main") > 0 and size(run, "daemon") > 0)
        await backend.pause(run.key)
        assert await quiet(run, "main")
        assert await quiet(run, "daemon")
        await backend.pause(run.key)
        await backend.unpause(run.key)
        before = size(run, "main"), size(run, "daemon")
        await until(lambda: size(run, "main") > before[0] and size(run, "daemon") > before[1])

    async def test_logs_hold_both_outputs(self, backend: Runtime, tmp_path: Path) -> None:
        """Whole, and the last lines; of services that exist."""
        run = self.app(tmp_path, self.named("main", POLITE))
        await self.up(backend, run)
        await until_async(lambda: logged(backend, run, 0, b"trouble from main"))
        assert b"hello from main" in await log(backend, run, 0)
        assert len((await log(backend, run, 1)).splitlines()) == 1
        with pytest.raises(NotFound):
            async for _ in backend.logs(run.key, "nobody"):
                pass

    async def test_logs_can_be_followed(self, backend: Runtime, tmp_path: Path) -> None:
        """What is written later arrives."""
        gate = tmp_path / "root-app-1" / VOLUME / "gate"
        program = (
            BEAT
            + "\nwhile not os.path.exists(f'{data}/gate'): time.sleep(0.02)\nprint('late', flush=True)\nbeat()"
        )
        run = self.app(tmp_path, self.named("main", program))
        await self.up(backend, run)
        stream = backend.logs(run.key, "main", follow=True)
        async with asyncio.timeout(LIMIT):
            asyncio.get_running_loop().call_later(0.3, gate.touch)
            async for chunk in stream:
                if b"late" in chunk:
                    break

    async def test_exec_runs_beside_the_service(self, backend: Runtime, tmp_path: Path) -> None:
        """Exit code, both outputs, stdin, the service's environment."""
        run = self.app(tmp_path, self.named("main", POLITE, env={"COLOUR": "blue"}))
        await self.up(backend, run)
        # One write each: an unbuffered program's parts may come with the other stream's between them.
        source = "import os, sys; sys.stdout.write(os.environ['COLOUR'] + ' ' + sys.stdin.read()); sys.stderr.write('err'); sys.exit(4)"
        result = await backend.exec(run.key, "main", ["python3", "-c", source], stdin=b"given")
        assert result.exit_code == 4
        assert b"blue given" in result.output
        assert b"err" in result.output

    async def test_exec_of_a_missing_program_says_so(self, backend: Runtime, tmp_path: Path) -> None:
        """As a shell would: exit code 127 and words about it, or an engine's own (126 or 127)."""
        run = self.app(tmp_path, self.named("main", POLITE))
        await self.up(backend, run)
        result = await backend.exec(run.key, "main", ["/nosuch/program"])
        assert result.exit_code in (126, 127)
        assert b"/nosuch/program" in result.output
        assert b"b'" not in result.output

    async def test_exec_is_bounded_in_time(self, backend: Runtime, tmp_path: Path) -> None:
        """A command that hangs is an error, and is gone."""
        run = self.app(tmp_path, self.named("main", POLITE))
        await self.up(backend, run)
        source = "import os, time\nwhile True:\n open(os.environ['DATA'] + '/hang', 'ab').write(b'.'); time.sleep(0.01)"
        with pytest.raises(BackendError):
            await backend.exec(run.key, "main", ["python3", "-c", source], timeout=2.0)
        assert await quiet(run, "hang")

    async def test_exec_in_nothing_is_not_found(self, backend: Runtime, tmp_path: Path) -> None:
        """Neither in a run that does not exist nor in a service that does not."""
        run = self.app(tmp_path, self.named("main", POLITE))
        with pytest.raises(NotFound):
            await backend.exec(run.key, "main", ["true"])
        await self.up(backend, run)
        with pytest.raises(NotFound):
            await backend.exec(run.key, "nobody", ["true"])

    async def test_freezable_names_the_run(self, backend: Runtime, tmp_path: Path) -> None:
        """The guard knows a run by its key, before it starts."""
        run = self.app(tmp_path, self.named("main", POLITE))
        assert (await backend.freezable(run)).run == run.key
