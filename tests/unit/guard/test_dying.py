"""Whatever of guard, undertaker, keeper and agent dies or hangs, in whatever order: nothing of an app runs on unguarded."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fractal.api.errors import Unreachable
from fractal.api.runtime import Freezable
from fractal.guard import book
from fractal.guard.client import GuardClient
from fractal.guard.linux import boot_id
from fractal.guard.processes import DEAD, descendants, read_process, scan

Bench = Any  # the fixtures' classes live in conftest.py, which cannot be imported by name


def keepers(guard: int) -> list[int]:
    """Pids of the guard's keepers."""
    return [p.pid for p in scan().values() if p.parent == guard]


async def all_dead(bench: Bench, family: Any) -> None:
    await bench.until(lambda: not family.alive())


@pytest.mark.parametrize("frozen", [False, True])
async def test_the_guard_killed_takes_its_apps_with_it(
    bench: Bench, guard: GuardClient, frozen: bool
) -> None:
    family = bench.family()
    await bench.start(guard, family, "stubborn")
    if frozen:
        await guard.freeze("g.a.1")
    pid, _ = await guard.ping()
    os.kill(pid, signal.SIGKILL)
    await all_dead(bench, family)
    with pytest.raises(Unreachable, match="guard"):
        await guard.ping()


async def test_a_dead_guard_is_replaced_and_comes_up_empty(bench: Bench, guard: GuardClient) -> None:
    family = bench.family()
    await bench.start(guard, family)
    pid, undertaker = await guard.ping()
    os.kill(pid, signal.SIGKILL)
    async with await bench.ensure() as successor:
        assert family.alive() == set(), "the successor served before the dead one's apps were buried"
        assert await successor.ping() != (pid, undertaker)
        assert await successor.status() == {}
    assert (await guard.ping())[0] != pid, "an old client finds the new guard"


async def test_the_undertaker_killed_takes_everything_with_it(bench: Bench, guard: GuardClient) -> None:
    family = bench.family()
    await bench.start(guard, family)
    _, undertaker = await guard.ping()
    os.kill(undertaker, signal.SIGKILL)
    await all_dead(bench, family)
    await (await bench.ensure()).close()


async def test_a_keeper_killed_takes_its_run_with_it_and_no_other(bench: Bench, guard: GuardClient) -> None:
    one, two = bench.family("one"), bench.family("two")
    await bench.start(guard, one, "storm")
    pid, _ = await guard.ping()
    (keeper,) = keepers(pid)
    await bench.start(guard, two, run="g.b.1")
    os.kill(keeper, signal.SIGKILL)
    await all_dead(bench, one)
    await two.beats_again()
    state = (await guard.status())["g.a.1"]
    assert state.services["main"].code == -signal.SIGKILL
    await guard.spawn(bench.request(one))
    await bench.until(lambda: "service" in one.alive())


async def test_what_survives_a_massacre_dies_at_the_next_start(bench: Bench, guard: GuardClient) -> None:
    """Guard, undertaker and keepers die in one instant: services by the kernel's hand, detached ones by the successor's."""
    family = bench.family()
    await bench.start(guard, family, "stubborn")
    pid, undertaker = await guard.ping()
    await bench.until(lambda: family.pids()["scrubbed"] in {m[0] for m in book.read(bench.folder).members})
    watchers = [pid, undertaker, *keepers(pid)]
    for watcher in watchers:  # stopped first, so that none of them can act on the death of another
        os.kill(watcher, signal.SIGSTOP)
    for watcher in watchers:
        os.kill(watcher, signal.SIGKILL)
    await bench.until(lambda: family.alive() <= {"child", "daemon", "scrubbed"})
    assert {"daemon", "scrubbed"} <= family.alive(), "nothing survived: this test shows nothing"
    async with await bench.ensure():
        assert family.alive() == set()


async def test_a_hung_guard_is_replaced_and_its_apps_are_killed(bench: Bench, guard: GuardClient) -> None:
    family = bench.family()
    await bench.start(guard, family)
    pid, _ = await guard.ping()
    os.kill(pid, signal.SIGSTOP)
    async with await bench.ensure(patience=1.0) as successor:
        assert (await successor.ping())[0] != pid
        assert family.alive() == set()


async def test_starting_twice_at_once_gives_one_guard(bench: Bench) -> None:
    clients = await asyncio.gather(*(bench.ensure() for _ in range(4)))
    try:
        assert len({await client.ping() for client in clients}) == 1
    finally:
        for client in clients:
            await client.close()


async def test_the_guard_outlives_its_agent(bench: Bench) -> None:
    source = (
        "import asyncio, pathlib, sys\n"
        "from fractal.guard.launch import ensure_guard\n"
        "from fractal.shell.clock import SystemClock\n"
        "from fractal.shell.process import ProcessRun\n"
        "async def main():\n"
        "    client = await ensure_guard(pathlib.Path(sys.argv[1]), run=ProcessRun(), clock=SystemClock())\n"
        "    print(*await client.ping())\n"
        "asyncio.run(main())\n"
    )
    agent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", source, str(bench.folder)),
        env=bench.environment,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    output, _ = await agent.communicate()
    assert agent.returncode == 0
    async with GuardClient(bench.folder / "guard.sock") as client:
        assert await client.ping() == tuple(map(int, output.split()))


async def test_two_guards_do_not_touch_each_other(bench: Bench, guard: GuardClient, tmp_path: Path) -> None:
    family = bench.family()
    await bench.start(guard, family)
    other = type(bench)(tmp_path / "other" / "guard")
    async with await other.ensure():
        await family.beats_again()
    await other.end()
    await family.beats_again()


DAMAGED = [
    "",
    "garbage",
    "[]",
    '{"boot": 1}',
    '{"boot": "BOOT", "cgroups": [], "members": {}}',
    '{"boot": "BOOT", "cgroups": {"x": "/etc"}, "members": []}',
    '{"boot": "BOOT", "cgroups": {}, "members": [["one", 1]]}',
    '{"boot": "another", "cgroups": {}, "members": [[1, 1]]}',
]


async def test_a_damaged_book_hurts_nobody(bench: Bench) -> None:
    bench.folder.mkdir(mode=0o700)
    for text in DAMAGED:
        (bench.folder / "book.json").write_text(text.replace("BOOT", boot_id()))
        assert book.read(bench.folder) == book.EMPTY, text
    async with await bench.ensure() as client:
        assert await client.status() == {}


async def test_nothing_of_a_finished_run_is_left(bench: Bench, guard: GuardClient) -> None:
    family = bench.family()
    await bench.start(guard, family)
    pid, _ = await guard.ping()
    await guard.kill("g.a.1")
    await guard.forget("g.a.1")
    await bench.until(lambda: not [p for p in descendants(scan(), pid) if p.state not in DEAD])
    await guard.forget("g.a.1")


async def test_end_leaves_no_process(bench: Bench) -> None:
    family = bench.family()
    async with await bench.ensure() as client:
        await bench.start(client, family)
        pids = await client.ping()
    await bench.end()
    assert family.alive() == set()
    left = [read_process(pid) for pid in pids]
    assert all(process is None or process.state in DEAD for process in left)
    await bench.end()


async def test_a_frozen_run_survives_its_agents_restart(bench: Bench, guard: GuardClient) -> None:
    """A new client finds the run as it was, registers it again, and can grant."""
    family = bench.family()
    await bench.start(guard, family)
    await guard.freeze("g.a.1")
    await guard.close()
    async with await bench.ensure() as later:
        await later.register(Freezable(run="g.a.1"))
        assert (await later.status())["g.a.1"].frozen
        assert await family.stands_still()
        await later.grant({"g.a.1": bench.now() + 60})
        await family.beats_again()


async def test_the_guard_is_small(bench: Bench) -> None:
    """It imports neither the agent's world nor anything heavy."""
    source = (
        "import sys, fractal.guard.undertaker\n"
        "print(sorted(m for m in sys.modules if m in ('asyncio', 'logging', 'ssl', 'yaml', 'nacl')"
        " or m.startswith('fractal.') and not m.startswith('fractal.guard')))\n"
    )
    done = await bench.run([sys.executable, "-P", "-c", source], env=bench.environment)
    assert done.stdout == b"[]\n"
