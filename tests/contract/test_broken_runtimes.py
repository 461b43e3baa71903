"""The runtimes' contract fails every runtime that is broken in a way an app would notice."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fractal.api.app import AppRun
from fractal.api.errors import BackendError
from fractal.api.runtime import ExecResult, Freezable, Health, Refusal, RunStatus, Runtime
from fractal.builtin.process.config import ProcessConfig
from fractal.builtin.process.runtime import ProcessRuntime
from fractal.guard.client import GuardClient
from fractal.shell.clock import SystemClock
from fractal.testing.process_bed import ProcessContract, opened
from fractal.testing.suite import broken, failures, run_suites


class Damaged:
    """A good runtime behind a door; each subclass spoils one thing."""

    def __init__(self, good: ProcessRuntime) -> None:
        self.good = good

    def __getattr__(self, name: str) -> Any:
        return getattr(self.good, name)


class RefusesEverything(Damaged):
    def check(self, spec: Any) -> Sequence[Refusal]:
        return [Refusal(spec.services[0].name, "image", "no")]


class StartsInPrepare(Damaged):
    async def prepare(self, run: AppRun) -> None:
        async with GuardClient(run.volume_root.parent / "guard" / "guard.sock") as guard:
            await guard.register(Freezable(run=run.key))
            await guard.grant({run.key: SystemClock().boottime() + 600})
        await self.good.start(run)


class ForgetsWhatRuns(Damaged):
    async def observe(self) -> Sequence[RunStatus]:
        return []


class LosesTheEpoch(Damaged):
    async def observe(self) -> Sequence[RunStatus]:
        return [replace(r, epoch=1) for r in await self.good.observe()]


class AlwaysHealthy(Damaged):
    async def observe(self) -> Sequence[RunStatus]:
        return [
            replace(r, services=tuple(replace(s, health=Health.HEALTHY) for s in r.services))
            for r in await self.good.observe()
        ]


class TakesCompletedForStopped(Damaged):
    async def observe(self) -> Sequence[RunStatus]:
        return [
            replace(
                r, services=tuple(s if s.running else replace(s, health=Health.STOPPED) for s in r.services)
            )
            for r in await self.good.observe()
        ]


class NamesNoEndpoint(Damaged):
    async def observe(self) -> Sequence[RunStatus]:
        return [
            replace(r, services=tuple(replace(s, endpoints=()) for s in r.services))
            for r in await self.good.observe()
        ]


class RestartsOnStart(Damaged):
    async def start(self, run: AppRun) -> None:
        await self.good.stop(run.key)
        await self.good.start(run)


class DropsTheEnvironment(Damaged):
    async def start(self, run: AppRun) -> None:
        services = tuple(
            replace(s, env={k: v for k, v in s.env.items() if k != "COLOUR"}) for s in run.spec.services
        )
        await self.good.start(replace(run, spec=replace(run.spec, services=services)))


class IgnoresDependencies(Damaged):
    async def start(self, run: AppRun) -> None:
        services = tuple(replace(s, depends_on={}) for s in run.spec.services)
        await self.good.start(replace(run, spec=replace(run.spec, services=services)))


class StopsWithoutAsking(Damaged):
    async def stop(self, key: str) -> None:
        await self.good.kill(key)


class OnlyAsks(Damaged):
    """Sends the stop signal and believes that it was obeyed."""

    async def stop(self, key: str) -> None:
        for run in await self.good.observe():
            for service in run.services:
                await self.good._guard.signal(key, service.name, "SIGTERM")


class KillsTheMainProcessOnly(Damaged):
    async def kill(self, key: str) -> None:
        state = (await self.good._guard.status()).get(key)
        for service in state.services.values() if state is not None else ():
            if service.code is None:
                os.kill(service.pid, signal.SIGKILL)


class KillsPolitely(Damaged):
    async def kill(self, key: str) -> None:
        await self.good.stop(key)


class KillsTheNeighboursToo(Damaged):
    async def kill(self, key: str) -> None:
        for run in await self.good.observe():
            await self.good.kill(f"{run.group}.{run.app}.{run.epoch}")


class StumblesOverTheUnknown(Damaged):
    async def kill(self, key: str) -> None:
        if not await self.good.observe():
            raise BackendError(f"{key}: no such run")
        await self.good.kill(key)


class RemovesTheData(Damaged):
    async def remove(self, key: str) -> None:
        await self.good.remove(key)
        for path in self.good._context.state_dir.parent.glob("root-*/data/*"):
            path.unlink()


class PausesNothing(Damaged):
    async def pause(self, key: str) -> None:
        pass

    async def unpause(self, key: str) -> None:
        pass


class PausesForEver(Damaged):
    async def unpause(self, key: str) -> None:
        pass


class KeepsNoLogs(Damaged):
    async def logs(
        self, key: str, service: str, *, tail: int = 100, follow: bool = False
    ) -> AsyncIterator[bytes]:
        async for _ in self.good.logs(key, service, tail=tail):
            yield b""


class IgnoresTail(Damaged):
    async def logs(
        self, key: str, service: str, *, tail: int = 100, follow: bool = False
    ) -> AsyncIterator[bytes]:
        async for chunk in self.good.logs(key, service, tail=0, follow=follow):
            yield chunk


class ExecAlwaysSucceeds(Damaged):
    async def exec(self, key: str, service: str, argv: Sequence[str], **options: Any) -> ExecResult:
        return replace(await self.good.exec(key, service, argv, **options), exit_code=0)


class ExecLosesStdin(Damaged):
    async def exec(
        self, key: str, service: str, argv: Sequence[str], *, stdin: bytes = b"", timeout: float = 60.0
    ) -> ExecResult:
        return await self.good.exec(key, service, argv, timeout=timeout)


class NamesItsOwnRun(Damaged):
    async def freezable(self, run: AppRun) -> Freezable:
        return Freezable(run=f"{run.app}")


CASES: dict[type[Damaged], str] = {
    RefusesEverything: "test_a_plain_app_is_not_refused",
    StartsInPrepare: "test_nothing_runs_before_start",
    ForgetsWhatRuns: "test_a_started_app_is_observed_with_its_labels",
    LosesTheEpoch: "test_a_started_app_is_observed_with_its_labels",
    AlwaysHealthy: "test_an_app_that_answers_500_never_gets_healthy",
    TakesCompletedForStopped: "test_completed_dependencies_come_first",
    NamesNoEndpoint: "test_the_endpoint_answers_and_health_is_seen",
    RestartsOnStart: "test_starting_again_starts_nothing_twice",
    DropsTheEnvironment: "test_environment_and_secrets_arrive",
    IgnoresDependencies: "test_a_failed_dependency_is_an_error_that_names_it",
    StopsWithoutAsking: "test_stop_is_polite",
    OnlyAsks: "test_stop_ends_what_ignores_the_signal",
    KillsTheMainProcessOnly: "test_kill_is_at_once_and_complete",
    KillsPolitely: "test_kill_is_at_once_and_complete",
    KillsTheNeighboursToo: "test_one_run_ends_and_the_others_go_on",
    StumblesOverTheUnknown: "test_ending_twice_or_nothing_is_fine",
    RemovesTheData: "test_remove_leaves_the_volume_root",
    PausesNothing: "test_pause_halts_everything",
    PausesForEver: "test_pause_halts_everything",
    KeepsNoLogs: "test_logs_hold_both_outputs",
    IgnoresTail: "test_logs_hold_both_outputs",
    ExecAlwaysSucceeds: "test_exec_runs_beside_the_service",
    ExecLosesStdin: "test_exec_runs_beside_the_service",
    NamesItsOwnRun: "test_freezable_names_the_run",
}


class Suite(ProcessContract):
    async def allow(self, run: AppRun, backend: Runtime) -> None:
        """Asks nothing of the runtime: a broken one may name another run."""
        async with GuardClient(run.volume_root.parent / "guard" / "guard.sock") as guard:
            await guard.register(Freezable(run=run.key))
            await guard.grant({run.key: SystemClock().boottime() + 600})


@pytest.mark.parametrize("damage", CASES, ids=lambda damage: damage.__name__)
def test_the_suite_fails_it(damage: type[Damaged], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fractal.testing.runtime_parts.LIMIT", 1.5)

    @contextlib.asynccontextmanager
    async def spoiled(tmp_path: Path) -> AsyncIterator[Any]:
        async with opened(tmp_path, ProcessConfig()) as good:
            yield damage(good)

    expected = CASES[damage]
    outcomes = run_suites({"it": broken(Suite, spoiled)}, "-k", expected)["it"]
    assert [outcome.test for outcome in outcomes] == [expected]
    assert failures(outcomes) == {expected}, outcomes
