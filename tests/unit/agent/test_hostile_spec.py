"""An app whose manager writes what makes no sense: it costs that app, and neither the device's beats nor others' routes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fractal.agent.jobs.beating import seal_beat
from fractal.agent.routing import desired_serving
from fractal.core.entries import AppChanged
from fractal.testing.agents import bed


async def test_a_specification_that_makes_no_sense_harms_its_own_app_only(tmp_path: Path) -> None:
    async with bed(tmp_path) as beds:
        agent = await beds.start("attic")
        await beds.found("attic")
        await beds.install("attic", routes=["test.example.org"])
        group, app = beds.at("attic"), beds.app("attic").id
        await beds.until(lambda: desired_serving(agent)[1])
        service: dict[str, Any] = {"name": "web", "process": {"argv": ["true"]}}
        for spec in (
            {},
            {"services": 7},
            {"name": "x", "services": [{**service, "name": "../up"}]},
            {"name": "x", "services": [service], "volumes": ["../../up"]},
        ):
            await group.journal.append(AppChanged(app=app, spec=spec))
            assert seal_beat(group)
            assert desired_serving(agent)[1] == ()
            assert group.status()["apps"]
            for command in ("app.list", "status.show"):
                assert await beds.call("attic", command)
        assert not list(tmp_path.rglob("up"))
