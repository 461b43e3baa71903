"""Commands of an app's around its snapshots: when they run, and what becomes of those that fail, hang, or are broken off."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fractal.api.events import Event
from fractal.testing.agents import Bed, bed, manifest

WRITES = 'date +%N > "$DATA/changed"; '
"""Something new to be saved, whenever a snapshot is due."""


@pytest.fixture
async def beds(tmp_path: Path) -> AsyncIterator[Bed]:
    async with bed(tmp_path) as made:
        await made.start("Attic")
        await made.found("Attic")
        yield made


def hooked(before: str, after: str, *more: str, timeout: str = "2s") -> str:
    """The manifest with hooks in shell words; further ones run after a snapshot too."""
    hooks = {
        "timeout": timeout,
        "before_snapshot": [{"service": "web", "argv": ["/bin/sh", "-c", WRITES + before]}],
        "after_snapshot": [{"service": "web", "argv": ["/bin/sh", "-c", word]} for word in (after, *more)],
    }
    section = json.dumps(hooks).replace("$", "$$")
    return manifest().replace("x-homeserver:\n  title", f"x-homeserver:\n  hooks: {section}\n  title")


async def root(beds: Bed) -> Path:
    return await beds.job("Attic").data.root() / "data"


def events(beds: Bed, monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    seen: list[Event] = []
    monkeypatch.setattr(beds.agents["Attic"].plugins, "event", seen.append)
    return seen


async def save(beds: Bed) -> str:
    """The moment that a snapshot taken now became."""
    done = await beds.call("Attic", "snapshot.create", app="test", wait_s=40)
    assert done["done"], done
    return str(done["moment"])


async def test_a_snapshot_holds_what_the_hook_before_it_wrote_and_not_what_the_one_after_did(
    beds: Bed,
) -> None:
    await beds.install(
        "Attic", hooked('echo held > "$DATA/lock"', 'rm "$DATA/lock"; echo x >> "$DATA/after"')
    )
    moment = await save(beds)
    snapshots = await beds.agents["Attic"].snapshotter.snapshots(beds.job("Attic").data.volume)
    newest = snapshots[-1].path / "data"
    assert (newest / "lock").read_text() == "held\n", moment
    folder = await root(beds)
    await beds.until(lambda: not beds.job("Attic").saver.hooks.held)
    assert not (folder / "lock").exists()
    # As often after as before, and one time less in what was saved.
    before = (newest / "after").read_text().count("x") if (newest / "after").exists() else 0
    assert (folder / "after").read_text().count("x") > before
    assert beds.note("Attic") == ""


async def test_what_a_hook_alone_writes_is_saved_though_nothing_else_changed(beds: Bed) -> None:
    """As a database in memory that its hook has write itself down."""
    await beds.install("Attic", hooked("true", "true"))
    first, second = await save(beds), await save(beds)
    assert first != second


@pytest.mark.parametrize(
    ("before", "said"),
    [("echo no room >&2; exit 3", "exited with 3: no room"), ("sleep 600", "not finished after 2 s")],
)
async def test_a_hook_that_fails_or_hangs_is_told_and_the_snapshot_is_taken_all_the_same(
    beds: Bed, monkeypatch: pytest.MonkeyPatch, before: str, said: str
) -> None:
    seen = events(beds, monkeypatch)
    switch = f'[ -e "$DATA/well" ] || {{ {before}; }}'
    await beds.install("Attic", hooked(switch, 'echo x >> "$DATA/released"'))
    first = await save(beds)
    assert said in beds.note("Attic") and "as after a loss of power" in beds.note("Attic")
    assert first != await save(beds), "later ones are taken as ever"
    folder = await root(beds)
    assert (folder / "released").read_text().count("x") >= 2, "those after it are run though it failed"
    assert [e.kind for e in seen if e.kind == "app.hook.failed"] == ["app.hook.failed"], "told once"
    assert said in next(e.text for e in seen if e.kind == "app.hook.failed")
    (folder / "well").touch()
    await save(beds)
    await beds.until(lambda: beds.note("Attic") == "")


async def test_one_that_hangs_after_a_snapshot_keeps_no_other_from_letting_go_and_is_run_again(
    beds: Bed,
) -> None:
    stuck = '[ -e "$DATA/well" ] || sleep 600'
    await beds.install("Attic", hooked('touch "$DATA/lock"', stuck, 'rm -f "$DATA/lock"', timeout="1s"))
    await save(beds)
    folder, hooks = await root(beds), beds.job("Attic").saver.hooks
    await beds.until(lambda: hooks.held and hooks.problem)
    assert "not finished after 1 s" in beds.note("Attic")
    assert not (folder / "lock").exists()
    (folder / "well").touch()
    # Nobody asks for a snapshot: the interval, or the next try, does it.
    await beds.until(lambda: not hooks.held and beds.note("Attic") == "")


async def test_an_agent_killed_between_the_hooks_runs_those_after_the_snapshot_when_it_is_back(
    beds: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    await beds.install("Attic", hooked('touch "$DATA/lock"', 'rm -f "$DATA/lock"'))
    await save(beds)
    folder, job = await root(beds), beds.job("Attic")
    there = asyncio.Event()

    async def never(*_: object) -> None:
        there.set()
        await asyncio.Event().wait()

    async def nothing() -> str:
        return ""  # a process that is gone runs nothing

    monkeypatch.setattr(job.group.agent.snapshotter, "snapshot", never)
    monkeypatch.setattr(job.saver.hooks, "_after", nothing)
    job.saver.hurry()
    job.group.pulse.beat()
    async with asyncio.timeout(30):
        await there.wait()
    assert (folder / "lock").exists()
    await beds.stop("Attic")
    monkeypatch.undo()
    assert (folder / "lock").exists() and job.facts.now.hooked
    await beds.start("Attic")
    await beds.until(lambda: beds.at("Attic").jobs and not (folder / "lock").exists(), limit=20)
    await beds.until(lambda: not beds.job("Attic").saver.hooks.held, limit=20)
