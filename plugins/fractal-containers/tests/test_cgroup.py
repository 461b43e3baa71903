"""Freezing and killing by path, in the kernel's hierarchies of both versions, with plain processes instead of an engine's.

A machine whose cgroups are of version 1 may have version 2 mounted beside (hybrid); freezing needs no controller of it.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from fractal_containers.cgroup import PARENT, SLICE, RunCgroup
from fractal_containers.ending import strike

from fractal.shell.clock import SystemClock
from fractal.testing.runtime_parts import until

BEAT = "while true; do echo -n . >> beat; sleep 0.01; done"
QUIET = 0.3


def hierarchies() -> dict[int, Path]:
    """Version -> what `RunCgroup.root` is for it on this machine."""
    found = {}
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, options, *_ = line.split()
        if kind == "cgroup" and "freezer" in options.split(","):
            found[1] = Path(place).parent
        if kind == "cgroup2":
            found[2] = Path(place)
    return found


@pytest.fixture(params=[1, 2])
def cgroup(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RunCgroup]:
    root = hierarchies().get(request.param)
    if os.geteuid() != 0:
        reason = "cgroups are root's to change"
        # Also where everything else is there: nothing but root tries either version.
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    if root is None:
        if not hierarchies() and os.environ.get("CI") == "true":
            pytest.fail("no cgroups are mounted here, of neither version")
        pytest.skip(f"cgroups of version {request.param} are not mounted here")
    made = RunCgroup(f"testcgroup{os.getpid()}v{request.param}", root)
    assert made.version == request.param
    made.make()
    yield made
    made.release()
    for pid in made.pids():
        with suppress(ProcessLookupError):  # it ended by itself meanwhile
            os.kill(pid, 9)
    assert eventually(made.remove)
    assert not made.outer.exists()


def eventually(look: Callable[[], bool]) -> bool:
    for _ in range(500):
        if look():
            return True
        time.sleep(0.01)
    return False


@pytest.fixture
def beating(cgroup: RunCgroup, tmp_path: Path) -> Iterator[Path]:
    """A program in a container's place, below the inner cgroup: the file that grows while it runs."""
    place = cgroup.inner / "container"
    place.mkdir()
    process = subprocess.Popen(["sh", "-c", f"read go; {BEAT}"], cwd=tmp_path, stdin=subprocess.PIPE)
    (place / "cgroup.procs").write_text(str(process.pid))
    assert process.stdin is not None
    process.stdin.write(b"go\n")
    process.stdin.flush()
    yield tmp_path / "beat"
    cgroup.release()
    process.kill()
    process.stdin.close()
    process.wait()


def size(beat: Path) -> int:
    return beat.stat().st_size if beat.exists() else 0


async def still(beat: Path) -> bool:
    before = size(beat)
    await asyncio.sleep(QUIET)
    return size(beat) == before


async def moving(beat: Path) -> None:
    before = size(beat)
    await until(lambda: size(beat) > before)


async def test_pausing_and_the_guards_freeze_do_not_undo_each_other(cgroup: RunCgroup, beating: Path) -> None:
    await moving(beating)
    assert not cgroup.frozen()
    await until(cgroup.freeze)
    assert await still(beating)
    assert not cgroup.frozen()  # a pause is none of the guard's
    guard = cgroup.outer / ("freezer.state" if cgroup.version == 1 else "cgroup.freeze")
    guard.write_text("FROZEN" if cgroup.version == 1 else "1")
    assert cgroup.frozen()
    cgroup.thaw()
    assert await still(beating)
    guard.write_text("THAWED" if cgroup.version == 1 else "0")
    await moving(beating)


@pytest.mark.parametrize("frozen", ["not", "paused", "by the guard"])
async def test_a_strike_ends_all_and_leaves_it_held(cgroup: RunCgroup, beating: Path, frozen: str) -> None:
    await moving(beating)
    if frozen == "paused":
        await until(cgroup.freeze)
    if frozen == "by the guard":
        cgroup.hold(outer=True)
        await until(cgroup.frozen)
        assert await still(beating)
    before = size(beating)
    await strike(SystemClock(), cgroup, "a run")
    if frozen != "not":
        assert size(beating) == before  # it had not one more instruction
    assert not cgroup.pids()
    assert cgroup.frozen() == (frozen == "by the guard")
    late = subprocess.Popen(
        ["sh", "-c", "read go; echo late > late"], cwd=beating.parent, stdin=subprocess.PIPE
    )
    try:  # what an engine puts there belatedly stands still
        (cgroup.inner / "container" / "cgroup.procs").write_text(str(late.pid))
        assert late.stdin is not None
        late.stdin.write(b"go\n")
        late.stdin.flush()
        await asyncio.sleep(QUIET)
        assert not (beating.parent / "late").exists()
    finally:
        cgroup.release()
        late.kill()
        if late.stdin is not None:
            late.stdin.close()
        late.wait()


def test_with_version_2_the_engine_may_name_the_inner_one_as_a_slice(cgroup: RunCgroup) -> None:
    """Of a slice `a-b-c.slice` systemd knows by its name that it lies in `a.slice/a-b.slice` (systemd.slice(5))."""
    if cgroup.version == 1:
        assert cgroup.parent == f"/{PARENT}/{cgroup.name}/app"
        return
    *above, name = Path(cgroup.parent).parts[1:]
    words = name.removesuffix(".slice").split("-")
    assert above == ["-".join(words[: n + 1]) + ".slice" for n in range(len(words) - 1)]
    assert cgroup.inner == cgroup.root / cgroup.parent[1:]


def test_what_is_removed_leaves_nothing(cgroup: RunCgroup) -> None:
    assert cgroup.outer.is_dir()
    assert cgroup.remove()
    assert not cgroup.outer.exists()
    assert cgroup.outer.parent.name == (PARENT if cgroup.version == 1 else f"{SLICE}.slice")
    assert cgroup.name in cgroup.outer.name
    assert cgroup.freeze()  # nothing to halt counts as halted
    assert cgroup.pids() == []
