"""An owner that says what is not so: it costs the others little."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from fractal.agent.app_job import AppJob
from fractal.agent.beats import AppBeat
from fractal.api.errors import BackendError
from fractal.api.runtime import RunStatus
from fractal.core.model import Point
from fractal.testing.agents import bed


async def test_a_snapshot_that_is_not_there_is_not_looked_for_all_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bed(tmp_path) as beds:
        await beds.start("attic")
        await beds.start("den")
        await beds.found("attic")
        await beds.join("den", by="attic")
        await beds.install("attic")
        await beds.until(lambda: beds.app("den").owner == beds.agents["attic"].keys.id)
        await beds.until(lambda: beds.app("den").id in beds.at("den").jobs)
        owner, other = beds.job("attic"), beds.job("den")
        honest = owner.beat
        lie = Point(epoch=owner.app.epoch, number=10**9)

        def beat() -> AppBeat:
            return replace(honest(), committed=lie)

        looks = 0
        look = other.data.look

        async def count() -> Point:
            nonlocal looks
            looks += 1
            return await look()

        monkeypatch.setattr(owner, "beat", beat)
        monkeypatch.setattr(other.data, "look", count)
        await beds.until(lambda: looks)
        await asyncio.sleep(2.0)
        assert looks <= 3
        # What is there is fetched as ever.
        monkeypatch.setattr(owner, "beat", honest)
        await beds.call("attic", "snapshot.create", app=owner.id, wait_s=30)
        await beds.until(lambda: other.fetched == owner.facts.now.committed)


async def test_a_release_that_names_an_old_snapshot_is_not_fetched_again_and_again(tmp_path: Path) -> None:
    async with bed(tmp_path) as beds:
        await beds.start("attic")
        await beds.found("attic")
        await beds.install("attic")
        data = beds.job("attic").data
        for word in ("one", "two"):
            (await data.root() / "data" / "word").write_text(word)
            await beds.call("attic", "snapshot.create", app=beds.job("attic").id, wait_s=30)
        newest = await data.look()
        assert newest.number > 1
        await data.fetch(Point(epoch=newest.epoch, number=1))
        assert data.fetched == newest


async def test_what_a_failed_start_left_is_stopped_though_no_look_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the epoch would be released as one of which nothing runs, and the next device would wait for nothing."""
    async with bed(tmp_path) as beds:
        agent = await beds.start("attic")
        await beds.found("attic")
        await beds.install("attic")
        job = beds.job("attic")
        key = job.runs()[0].key
        real = agent.runtime.observe

        async def hangs() -> Sequence[RunStatus]:
            raise BackendError("the engine does not answer", retryable=True)

        monkeypatch.setattr(agent.runtime, "observe", hangs)
        agent.runs = ()
        assert await job.halt() == [key]
        assert not any(service.running for run in await real() for service in run.services)


async def test_what_was_only_made_ready_has_not_begun_to_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a device that is cut off in its wait gives up, once it is back, what it never tried."""
    async with bed(tmp_path) as beds:
        agent = await beds.start("attic")
        await beds.found("attic")
        await beds.install("attic")
        job = beds.job("attic")
        (run,) = job.runs()
        coming = replace(job.app, serving=0)
        monkeypatch.setattr(AppJob, "app", property(lambda _: coming))
        job._started = None  # as in an agent that has just begun
        agent.runs = (replace(run, services=()),)
        assert job.view().started is None
        agent.runs = (run,)
        assert job.view().started is not None
