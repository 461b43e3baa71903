"""What a Compose file wants run inside a service after its start and before its end, on real engines."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fractal_containers.testing import RememberingRuntime, TestEngine, again, opened
from fractal_containers.testing_images import BUSYBOX

from fractal.api.app import AppRun
from fractal.api.errors import BackendError
from fractal.manifest import parse
from fractal.shell.clock import SystemClock
from fractal.testing.runtime_parts import until

pytestmark = pytest.mark.usefixtures("inside")
LIVES = 'trap "echo signalled >> /data/said; exit" TERM; while :; do sleep 0.1; done'


@pytest.fixture
async def runtime(engine: TestEngine, tmp_path: Path, inside: None) -> AsyncIterator[RememberingRuntime]:
    async with opened(engine, tmp_path, timeout=30.0) as made:
        yield made


def run_of(folder: Path, *, grace: str = "10s", restart: str = "always", **hooks: object) -> AppRun:
    """A service with hooks, and one that is started after it."""
    first: dict[str, object] = {"image": BUSYBOX, "command": ["sh", "-c", LIVES], "volumes": ["data:/data"]}
    first |= {"stop_grace_period": grace, "restart": restart, **hooks}
    second = {"image": BUSYBOX, "depends_on": ["first"], "volumes": ["data:/data"]}
    second |= {"command": ["sh", "-c", "echo second >> /data/said; sleep 1000"]}
    text = json.dumps({"services": {"first": first, "second": second}, "volumes": {"data": None}})
    root = folder / "root"
    root.mkdir()
    (root / "data").mkdir()
    (root / "data").chmod(0o777)
    return AppRun(
        group="group", app="app", epoch=1, spec=parse(text.replace("$", "$$"), "app"), volume_root=root
    )


def said(run: AppRun) -> list[str]:
    path = run.volume_root / "data" / "said"
    return path.read_text().splitlines() if path.exists() else []


async def up(runtime: RememberingRuntime, run: AppRun) -> None:
    assert list(runtime.check(run.spec)) == []
    await runtime.prepare(run)
    await runtime.freezable(run)
    await runtime.start(run)


async def test_they_run_as_written_after_the_start_and_before_the_end(
    runtime: RememberingRuntime, tmp_path: Path
) -> None:
    who = {"command": ["sh", "-c", "echo $(id -u) $(pwd) $WORD >> /data/said"]}
    started = [who | {"user": "1000", "working_dir": "/srv", "environment": {"WORD": "hello"}}]
    ended = [{"command": "sh -c 'echo first >> /data/said'"}, {"command": ["sh", "-c", "exit 3"]}]
    ended.append({"command": ["sh", "-c", "echo last >> /data/said"]})
    run = run_of(tmp_path, post_start=started, pre_stop=ended)
    await up(runtime, run)
    await until(lambda: len(said(run)) == 2)
    assert said(run) == ["1000 /srv hello", "second"], "before whatever needs the service"
    await runtime.start(run)
    assert len(said(run)) == 2, "once for each start"
    await runtime.stop(run.key)
    assert said(run)[2:] == ["first", "last", "signalled"], "one that fails keeps nothing from ending"


async def test_one_that_fails_after_the_start_makes_the_start_fail_and_is_run_at_the_next(
    runtime: RememberingRuntime, tmp_path: Path
) -> None:
    fails = {"command": ["sh", "-c", "[ -e /data/well ] || { echo no room >&2; exit 3; }"]}
    run = run_of(tmp_path, post_start=[fails])
    with pytest.raises(BackendError, match=r"service first: sh after its start: exited with 3: no room"):
        await up(runtime, run)
    assert said(run) == [], "what needs the service was not started"
    (run.volume_root / "data" / "well").touch()
    end = SystemClock().boottime() + 60
    while said(run) != ["second"] and SystemClock().boottime() < end:
        await runtime.start(run)
        await SystemClock().sleep(0.2)
    assert said(run) == ["second"]


async def test_one_that_was_broken_off_with_its_agent_is_run_by_the_next(
    engine: TestEngine, runtime: RememberingRuntime, tmp_path: Path
) -> None:
    waits = {"command": ["sh", "-c", "echo begun >> /data/said; [ -e /data/well ] || sleep 1000"]}
    run = run_of(tmp_path, post_start=[waits])
    starting = asyncio.create_task(up(runtime, run))
    await until(lambda: said(run) == ["begun"])
    starting.cancel()
    await asyncio.wait([starting])
    (run.volume_root / "data" / "well").touch()
    async with again(engine, tmp_path, timeout=30.0) as later:
        await later.start(run)
        await until(lambda: said(run) == ["begun", "begun", "second"])


async def test_one_that_hangs_before_the_end_has_the_grace_of_its_service(
    runtime: RememberingRuntime, tmp_path: Path
) -> None:
    hangs = {"command": ["sh", "-c", "echo begun >> /data/said; sleep 1000"]}
    run = run_of(
        tmp_path, grace="2s", pre_stop=[hangs, {"command": ["sh", "-c", "echo never >> /data/said"]}]
    )
    await up(runtime, run)
    await until(lambda: said(run) == ["second"])
    async with asyncio.timeout(60):
        await runtime.stop(run.key)
    assert said(run) == ["second", "begun", "signalled"]
