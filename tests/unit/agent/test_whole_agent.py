"""Whole agents with real guards, processes, stores and logs: what one of them does after a mishap."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from fractal.agent.control.following import follow_here
from fractal.agent.control.progress import Silent
from fractal.api.errors import Misconfigured
from fractal.core.entries import AppChanged
from fractal.core.model import Point
from fractal.core.plan import Step, next_step
from fractal.shell.clock import SystemClock
from fractal.testing.agents import SERVER, Bed, bed, manifest, service

LOOPS = "import time\nwhile True: time.sleep(1)"


@pytest.fixture
async def beds(tmp_path: Path) -> AsyncIterator[Bed]:
    async with bed(tmp_path) as made:
        yield made


@pytest.fixture
async def attic(beds: Bed) -> Bed:
    """One device with one group and the app running."""
    await beds.start("Attic")
    await beds.found("Attic")
    await beds.install("Attic")
    return beds


async def test_a_killed_guard_is_replaced_and_the_app_started_again(attic: Bed) -> None:
    agent = attic.agents["Attic"]
    guard, undertaker = await agent.guard.ping()
    os.kill(guard, signal.SIGKILL)
    await attic.until(lambda: not Path(f"/proc/{undertaker}").exists())
    await attic.until(lambda: len(attic.job("Attic").runs()) == 1 and attic.job("Attic").health() is not None)

    def back() -> bool:
        run = attic.job("Attic").health()
        return run is not None and run.health.value == "healthy" and not run.frozen

    starts = (await attic.job("Attic").data.root()) / "data" / "starts"
    # What was last seen of it may be from before the guard's end.
    await attic.until(lambda: starts.read_text().split() == ["one", "one"])
    await attic.until(back)
    assert (await agent.guard.ping())[0] != guard
    # Many replacements leave no connection behind: each guard has the agent's few only.
    held = len([fd for fd in Path("/proc/self/fd").iterdir() if fd.exists()])
    for _ in range(3):
        before = (await agent.guard.ping())[0]
        os.kill(before, signal.SIGKILL)
        while True:
            try:
                if (await agent.grants.ping())[0] != before:
                    break
            except Exception:
                pass
            await SystemClock().sleep(0.05)
        await attic.until(back)
    assert len([fd for fd in Path("/proc/self/fd").iterdir() if fd.exists()]) <= held + 3


async def test_an_agent_whose_backend_does_not_open_closes_those_that_did(beds: Bed, tmp_path: Path) -> None:
    await beds.start("Attic")
    await beds.stop("Attic")
    path = tmp_path / "Attic" / "config.toml"
    path.write_text(
        path.read_text() + 'listen = "0.0.0.0"\n'
    )  # needs `advertise`, as the transport finds last of all
    with pytest.raises(Misconfigured):
        await beds.start("Attic")
    assert [str(f) for f in open_below(tmp_path)] == []


def open_below(folder: Path) -> list[Path]:
    """Files and sockets below a folder that this process holds open."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            target = descriptor.readlink()
            if target.is_relative_to(folder):
                found.append(target)
    return found


async def test_a_dead_service_among_several_is_started_again(beds: Bed) -> None:
    await beds.start("Attic")
    await beds.found("Attic")
    second = service("second", code=LOOPS).split("      health:")[0].rstrip() + "\n"
    await beds.install("Attic", manifest(service(), second))
    agent = beds.agents["Attic"]
    key = next(iter(beds.job("Attic").run_keys()))
    before = (await agent.guard.status())[key].services["second"].pid
    web = (await agent.guard.status())[key].services["web"].pid
    os.kill(before, signal.SIGKILL)

    async def pid() -> int:
        return (await agent.guard.status())[key].services["second"].pid

    for _ in range(200):
        if await pid() != before:
            break
        await SystemClock().sleep(0.05)
    assert await pid() != before and (await agent.guard.status())[key].services["web"].pid == web


async def test_a_crash_loop_is_no_busy_loop_and_is_saved_all_the_same(beds: Bed) -> None:
    await beds.start("Attic")
    await beds.found("Attic")
    failing = service("second", code="raise SystemExit(3)").split("      health:")[0].rstrip() + "\n"
    await beds.call("Attic", "app.install", manifest=manifest(service(), failing), wait_s=0, interval_s=10)
    await beds.until(lambda: beds.at("Attic").jobs and beds.job("Attic").facts.now.committed is not None)
    job = beds.job("Attic")
    seen = job.view()
    assert seen.start_at > 0 and next_step(seen) in (Step.START, Step.TICK, Step.IDLE)


async def test_no_moment_is_kept_of_an_app_that_comes_up_for_the_first_time(beds: Bed) -> None:
    await beds.start("Attic")
    await beds.found("Attic")
    # As a database that makes its files: from half of them it would not start again.
    slow = SERVER.replace(
        'Server(("127',
        '(data / "half").touch(); import time; time.sleep(4); (data / "half").unlink()\nServer(("127',
    )
    await beds.call("Attic", "app.install", manifest=manifest(service(code=slow)), wait_s=0, interval_s=10)
    await beds.until(lambda: any(beds.folder.glob("Attic/state/snapshot/**/root/data/half")))
    assert (await beds.call("Attic", "snapshot.create", app="test", wait_s=40))["done"]
    snapshotter, volume = beds.agents["Attic"].snapshotter, beds.job("Attic").data.volume
    kept = [{p.name for p in (s.path / "data").iterdir()} for s in await snapshotter.snapshots(volume)]
    assert {"starts"} in kept
    assert not any("half" in names for names in kept), kept


async def test_all_services_are_followed_at_once(beds: Bed) -> None:
    """Also the first one of several, which has to be heard while the others are silent."""
    await beds.start("Attic")
    await beds.found("Attic")
    talks = SERVER.replace("def do_GET(self):", "def do_GET(self):\n        print('asked', flush=True)")
    silent = service("silent", code=LOOPS).split("      health:")[0].rstrip() + "\n"
    await beds.install("Attic", manifest(service(code=talks), silent))
    heard: asyncio.Queue[tuple[str, str]] = asyncio.Queue()

    class Ear(Silent):
        async def output(self, record: Mapping[str, object]) -> None:
            heard.put_nowait((str(record["service"]), str(record["line"])))

    key = next(iter(beds.job("Attic").run_keys()))
    runtime, services = beds.agents["Attic"].runtime, ["web", "silent"]
    following = asyncio.create_task(follow_here(runtime, key, services, 1, Ear()))
    try:
        async with asyncio.timeout(60):
            assert await heard.get() == ("web", "asked")  # by the health check, again and again
    finally:
        following.cancel()
        await asyncio.wait([following])
    assert following.cancelled()


async def test_one_shot_services_end_well(beds: Bed) -> None:
    await beds.start("Attic")
    await beds.found("Attic")
    once = service("second", code="print('made')").split("      health:")[0].rstrip()
    await beds.install("Attic", manifest(service(), f"{once}\n    restart: 'no'\n"))
    run = beds.job("Attic").health()
    assert run is not None and run.health.value == "healthy"


async def test_a_new_manifest_is_applied_after_a_snapshot(attic: Bed) -> None:
    result = await attic.call("Attic", "app.update", app="test", manifest=manifest(service(word="two")))
    assert result["done"]
    assert await attic.starts("Attic") == ["one", "two"]
    # The last moment before the new version's start: its data, with what the old one had written.
    begun = (await attic.job("Attic").data.root() / "data" / "starts").stat().st_mtime_ns // 1_000_000
    await attic.until(lambda: not attic.job("Attic").facts.now.queue)
    listed = (await attic.call("Attic", "snapshot.list", app="test"))["snapshots"]
    before = [s["moment"] for s in listed if s["wall_ms"] <= begun]
    await attic.call("Attic", "app.restore", app="test", at=before[-1])
    assert await attic.starts("Attic") == ["one", "two"]  # started again on the data of before


async def test_a_new_secret_restarts_only_who_uses_it(attic: Bed) -> None:
    job = attic.job("Attic")
    result = await attic.call("Attic", "app.update", app="test", secrets={"unused": "x"})
    assert result["done"] and "unused" in attic.app("Attic").secrets
    assert not job.manifest.outdated and await attic.starts("Attic") == ["one"]
    # A new manifest that wants a secret made, and uses it: both come with one change.
    uses = service(word="two").replace('{WORD: "two"', '{WORD: "two", KEY: "{secret.key}"')
    text = manifest(uses).replace(
        "x-homeserver:\n  title", "x-homeserver:\n  secrets: {generate: [key]}\n  title"
    )
    assert (await attic.call("Attic", "app.update", app="test", manifest=text))["done"]
    assert await attic.starts("Attic") == ["one", "two"]
    assert (await attic.call("Attic", "app.update", app="test", secrets={"key": "other"}))["done"]
    await attic.until(lambda: not job.manifest.outdated and attic.job("Attic").facts.now.updated_ms == 0)
    assert await attic.starts("Attic") == ["one", "two", "two"]


async def test_a_manifest_that_does_not_get_healthy_says_what_to_do(
    attic: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fractal.agent.manifest_use.UPDATE_PATIENCE", 0.0)
    broken = service(code="raise SystemExit('does not work')")
    result = await attic.call("Attic", "app.update", app="test", manifest=manifest(broken), wait_s=3)
    assert not result["done"]
    await attic.until(lambda: "new manifest" in attic.note("Attic"))
    assert "app restore" in attic.note("Attic")
    back = await attic.call("Attic", "app.update", app="test", manifest=manifest(service(word="three")))
    assert back["done"]
    assert attic.note("Attic") == "" and (await attic.starts("Attic"))[-1] == "three"


async def test_a_manifest_that_came_while_the_agent_was_down_is_applied(attic: Bed) -> None:
    change = attic.app("Attic")
    from fractal.manifest import parse
    from fractal.manifest.plain import to_plain_spec

    text = manifest(service(word="later"))
    job = attic.job("Attic")
    # In the log, and the agent is gone at once: if the job looked before, it is broken off in the middle.
    spec = to_plain_spec(parse(text, source="t"))
    await attic.at("Attic").journal.append(AppChanged(app=change.id, manifest=text, spec=spec))
    await attic.stop("Attic")
    assert job.facts.now.spec
    await attic.start("Attic")

    async def later() -> bool:
        return (await attic.starts("Attic"))[-1] == "later"

    for _ in range(400):
        if attic.at("Attic").jobs and await later():
            break
        await SystemClock().sleep(0.05)
    assert await later()


# --- restore and move ------------------------------------------------------------------------------------------------


async def marked(bed: Bed, *marks: str) -> list[str]:
    """The moment of each mark: it is written into the app's data, and a snapshot of it stored."""
    moments = []
    for mark in marks:
        (await bed.job("Attic").data.root() / "data" / "mark").write_text(mark)
        created = await bed.call("Attic", "snapshot.create", app="test", wait_s=40)
        assert created["done"], bed.job("Attic").problem()
        moments.append(str(created["moment"]))
    assert len(set(moments)) == len(marks)
    return moments


async def mark(bed: Bed) -> str:
    return (await bed.job("Attic").data.root() / "data" / "mark").read_text()


async def test_a_restore_that_was_broken_off_is_finished(attic: Bed) -> None:
    """Killed between putting the present aside and putting the earlier moment in place: there is no volume root."""
    moments = await marked(attic, "first", "second")
    job, agent = attic.job("Attic"), attic.agents["Attic"]
    volume = job.data.volume
    await attic.call("Attic", "app.stop", app="test")
    await attic.until(lambda: job.resting)
    await attic.stop("Attic")
    # As it is after such a crash: the wish stands in the log, the root is away.
    await attic.start("Attic")
    agent = attic.agents["Attic"]
    await attic.until(lambda: attic.at("Attic").jobs and attic.job("Attic").facts.now.root)
    await agent.snapshotter.set_aside(volume, "before-restore-999")
    result = await attic.call("Attic", "app.restore", app="test", at=moments[0], wait_s=30)
    assert result["done"], attic.job("Attic").problem()
    await attic.call("Attic", "app.start", app="test")
    assert await mark(attic) == "first"


async def test_what_cannot_be_restored_costs_no_downtime(attic: Bed) -> None:
    moments = await marked(attic, "first", "second")
    job = attic.job("Attic")
    # Neither here nor in the store: a moment whose record is there and whose data is gone.
    epoch, _, number = moments[1].partition(".")
    point = Point(epoch=int(epoch), number=int(number))
    archive = await job.data.archive()
    record = (await archive.timeline()).record(point)
    for path in (attic.folder / "shelf").rglob("*"):
        if path.is_file() and record.body.object.id in str(path):
            path.rename(attic.folder / "gone")
    name = job.facts.now.name_of(point)
    held = {s.name for s in await attic.agents["Attic"].snapshotter.snapshots(job.data.volume)}
    if name in held:
        await attic.agents["Attic"].snapshotter.delete(job.data.volume, name)
    result = await attic.call("Attic", "app.restore", app="test", at=moments[1], wait_s=3)
    assert not result["done"]
    await attic.until(lambda: "restore" in attic.note("Attic"))
    assert await attic.starts("Attic") == ["one"]  # it was never stopped
    run = job.health()
    assert run is not None and run.health.value == "healthy"
    # Another wish replaces it, and snapshots go on meanwhile.
    done = await attic.call("Attic", "app.restore", app="test", at=moments[0], wait_s=40)
    assert done["done"] and attic.note("Attic") == ""
    assert await mark(attic) == "first"


async def test_a_move_to_a_silent_device_is_told_and_taken_back(attic: Bed) -> None:
    kitchen = await attic.start("Kitchen")
    await attic.join("Kitchen", by="Attic")
    await attic.until(lambda: kitchen.keys.id in attic.app("Attic").keys[-1].sealed)
    await attic.until(lambda: attic.at("Attic").online(kitchen.keys.id))
    await attic.stop("Kitchen")
    await attic.until(lambda: not attic.at("Attic").online(kitchen.keys.id))
    result = await attic.call("Attic", "app.move", app="test", device="Kitchen", wait_s=2)
    assert not result["done"]
    assert "Kitchen, which is silent" in attic.note("Attic")
    assert "app move" in attic.note("Attic")
    back = await attic.call("Attic", "app.move", app="test", device="Attic", wait_s=10)
    assert back["done"] and attic.app("Attic").move_to == "" and attic.note("Attic") == ""
    assert await attic.starts("Attic") == ["one"]


async def test_what_an_ending_agent_hands_over_leaves_nothing_with_the_guard(attic: Bed) -> None:
    """A stopped run has no process and is not observed; the guard keeps it, and lives, until it is forgotten."""
    kitchen = await attic.start("Kitchen")
    await attic.join("Kitchen", by="Attic")
    await attic.until(lambda: kitchen.keys.id in attic.app("Attic").keys[-1].sealed)
    await attic.until(lambda: attic.at("Attic").online(kitchen.keys.id))
    key = next(iter(attic.job("Attic").run_keys()))
    agent = attic.agents["Attic"]
    assert key in await agent.guard.status()
    await agent.hand_over()
    app = attic.app("Attic")
    # The other one may have taken it already, which ends the release.
    assert app.release is not None or app.owner == kitchen.keys.id
    assert key not in await agent.guard.status()


async def test_an_app_removed_while_its_device_was_down_ends_there(attic: Bed) -> None:
    await attic.start("Kitchen")
    await attic.join("Kitchen", by="Attic")
    key = next(iter(attic.job("Attic").run_keys()))
    volume = attic.job("Attic").data.volume
    await attic.stop("Attic")
    await attic.call("Kitchen", "app.remove", app="test", force=True, wait_s=0)
    agent = await attic.start("Attic")
    for _ in range(200):
        if key not in await agent.guard.status() and not await agent.snapshotter.snapshots(volume):
            break
        await SystemClock().sleep(0.1)
    assert key not in await agent.guard.status()
    assert await agent.snapshotter.root(volume) is None and not await agent.snapshotter.snapshots(volume)


async def test_a_group_whose_notes_are_damaged_takes_down_nothing_else(attic: Bed) -> None:
    agent = attic.agents["Attic"]
    prefix = f"group/{attic.group}"
    key = next(iter(attic.job("Attic").run_keys()))
    pid = (await agent.guard.status())[key].pids
    await attic.at("Attic").close()
    agent.notes.write({f"{prefix}/entry/{2:012d}": None, f"{prefix}/state": None})
    await attic.stop("Attic")
    agent = await attic.start("Attic")
    assert "lack log entry 2" in agent.status()["jobs"][attic.group]
    assert (await attic.call("Attic", "group.create", name="Group 2"))["name"] == "Group 2"
    await SystemClock().sleep(2)
    assert (await agent.guard.status())[key].pids == pid  # frozen by now or soon, but not killed


async def test_before_a_planned_move_stops_an_app_no_route_leads_to_it(beds: Bed) -> None:
    for name in ("Attic", "Kitchen"):
        await beds.start(name)
    await beds.found("Attic")
    await beds.join("Kitchen", by="Attic")
    await beds.install("Attic")
    kitchen = beds.agents["Kitchen"].keys.id
    await beds.until(lambda: kitchen in beds.app("Attic").keys[-1].sealed)
    await beds.call("Attic", "route.add", group=beds.group, name="test.example", app="test")
    attic = beds.agents["Attic"]
    await beds.until(lambda: [r.name for r in attic.serving] == ["test.example"])
    served: list[list[str]] = []
    stop = attic.runtime.stop

    async def watched(key: str) -> None:
        served.append([r.name for r in attic.serving])
        await stop(key)

    attic.runtime.stop = watched  # type: ignore[method-assign]
    await beds.call("Attic", "app.move", group=beds.group, app="test", device="Kitchen", wait_s=60)
    await beds.until(lambda: beds.app("Kitchen").serving == 2)
    assert served == [[]]
    await beds.until(lambda: [r.name for r in beds.agents["Kitchen"].serving] == ["test.example"])
    assert not attic.serving
