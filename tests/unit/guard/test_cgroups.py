"""Freezing by cgroup, as for container engines: on the real file systems of this machine, where it may."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from fractal.api.errors import BackendError, Conflict
from fractal.api.runtime import Freezable
from fractal.guard.book import cgroup_path
from fractal.guard.client import GuardClient
from fractal.guard.processes import DEAD, read_process

Bench = Any  # the fixtures' classes live in conftest.py, which cannot be imported by name

ROOTS = {
    "v1": [Path("/sys/fs/cgroup/freezer")],
    "v2": [Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified")],
}


def make_cgroup(version: str) -> Path:
    """A new cgroup with a freezer of this version, or skip."""
    file = {"v1": "freezer.state", "v2": "cgroup.freeze"}[version]
    for root in ROOTS[version]:
        # Two levels, as an engine's: what lies right below may be a hierarchy, or a slice of systemd.
        folder = root / f"fractal-test-{uuid4().hex}" / "run"
        with contextlib.suppress(OSError):
            folder.parent.mkdir()
            folder.mkdir()
            if (folder / file).exists():
                return folder
            folder.rmdir()
            folder.parent.rmdir()
    pytest.skip(f"no cgroup {version} freezer that we may use on this machine")


@pytest.fixture(params=["v1", "v2"])
async def cgroup(request: pytest.FixtureRequest) -> AsyncIterator[Path]:
    folder = make_cgroup(request.param)
    try:
        yield folder
    finally:
        for _ in range(200):
            # Each time: a guard that is about to end may have frozen it once more, and what is frozen by v1 does not die.
            for name, text in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
                if (folder / name).exists():
                    (folder / name).write_text(text)
            pids = (folder / "cgroup.procs").read_text().split() if folder.exists() else []
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            with contextlib.suppress(OSError):
                folder.rmdir()
            if not folder.exists():
                folder.parent.rmdir()
                break
            await asyncio.sleep(0.02)
        assert not folder.exists(), f"{folder} still has processes"


async def start(family: Any, cgroup: Path) -> asyncio.subprocess.Process:
    """The family, as an engine would start it: in the cgroup, and nothing to do with the guard."""
    enter = (
        "import os, sys; open(sys.argv[1], 'w').write(str(os.getpid())); os.execv(sys.argv[2], sys.argv[2:])"
    )
    argv = [sys.executable, "-S", "-c", enter, str(cgroup / "cgroup.procs"), *family.argv()]
    return await asyncio.create_subprocess_exec(*argv)


@contextlib.asynccontextmanager
async def engine(bench: Bench, guard: GuardClient, cgroup: Path) -> AsyncIterator[Any]:
    """The family running in the cgroup, registered and granted."""
    family = bench.family()
    await guard.register(Freezable(run="g.c.1", cgroup=cgroup))
    await guard.grant({"g.c.1": bench.now() + 600})
    process = await start(family, cgroup)
    try:
        await family.up()
        yield family
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        for name, text in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
            if (cgroup / name).exists():
                (cgroup / name).write_text(text)  # a v1 task dies of a signal only when thawed
        await process.wait()


async def test_freeze_thaw_and_the_deadline(bench: Bench, guard: GuardClient, cgroup: Path) -> None:
    async with engine(bench, guard, cgroup) as family:
        await guard.freeze("g.c.1")
        assert await family.stands_still()
        await guard.grant({"g.c.1": bench.now() + 0.4})
        await family.beats_again()
        await bench.until_still(guard, "g.c.1")
        assert await family.stands_still()
        assert len((await guard.status())["g.c.1"].pids) == 4


async def test_a_thaw_by_somebody_else_is_undone(bench: Bench, guard: GuardClient, cgroup: Path) -> None:
    async with engine(bench, guard, cgroup) as family:
        await guard.freeze("g.c.1")
        for name, text in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
            if (cgroup / name).exists():
                (cgroup / name).write_text(text)
        await asyncio.sleep(0.4)
        assert await family.stands_still()


async def test_what_is_frozen_is_killed_without_running_again(
    bench: Bench, guard: GuardClient, cgroup: Path
) -> None:
    async with engine(bench, guard, cgroup) as family:
        await guard.freeze("g.c.1", final=True)
        before = family.sizes()
        await guard.kill("g.c.1")
        assert family.alive() == set()
        assert family.sizes() == before
        await guard.forget("g.c.1")


async def test_the_guard_killed_leaves_the_cgroup_frozen(
    bench: Bench, guard: GuardClient, cgroup: Path
) -> None:
    """An engine's containers are not ours to kill; they stand still until somebody has proof."""
    async with engine(bench, guard, cgroup) as family:
        pid, undertaker = await guard.ping()
        os.kill(pid, signal.SIGKILL)
        await bench.until(lambda: (process := read_process(undertaker)) is None or process.state in DEAD)
        assert await family.stands_still()
        async with await bench.ensure() as successor:
            state = (await successor.status())["g.c.1"]
            assert state.frozen
            assert state.settled
            await successor.register(Freezable(run="g.c.1", cgroup=cgroup))
            await successor.grant({"g.c.1": bench.now() + 60})
            await family.beats_again()


async def test_a_cgroup_that_appears_later_is_frozen_when_it_does(
    bench: Bench, guard: GuardClient, cgroup: Path
) -> None:
    inner = cgroup / "later"
    await guard.register(Freezable(run="g.c.1", cgroup=inner))
    assert (await guard.status())["g.c.1"].frozen
    inner.mkdir()
    family = bench.family()
    process = await start(family, inner)
    try:
        await asyncio.sleep(0.5)
        await bench.until_still(guard, "g.c.1")
        assert await family.stands_still()
        await guard.kill("g.c.1")
        await asyncio.wait_for(process.wait(), 30)
    finally:
        await guard.kill("g.c.1")
        for _ in range(200):
            with contextlib.suppress(OSError):
                inner.rmdir()
                break
            await asyncio.sleep(0.02)


async def test_the_guard_starts_nothing_in_an_engines_run(
    bench: Bench, guard: GuardClient, cgroup: Path
) -> None:
    await guard.register(Freezable(run="g.c.1", cgroup=cgroup))
    await guard.grant({"g.c.1": bench.now() + 60})
    with pytest.raises(Conflict):
        await guard.spawn(bench.request(bench.family(), run="g.c.1"))
    with pytest.raises(Conflict, match="already registered"):
        await guard.register(Freezable(run="g.c.1"))


async def test_only_a_cgroup_of_one_run_is_taken(guard: GuardClient) -> None:
    outside = "/sys/fs/cgroup/a/../../../etc"
    for path in ("/etc", "/sys/fs/cgroup", "/sys/fs/cgroup/freezer", outside, "x"):
        with pytest.raises(BackendError, match="not a cgroup"):
            await guard.register(Freezable(run="g.c.1", cgroup=Path(path)))


def test_a_link_out_of_the_cgroups_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc")
    with pytest.raises(ValueError, match="not a cgroup"):
        cgroup_path(str(tmp_path / "link"))
