"""The doctor's walk along a route, on a real device that is host and gateway at once: each break is found, with a remedy."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from fractal.agent.beats import Beat
from fractal.agent.walk import SKEW_MS
from fractal.core.entries import AppChanged, DeviceUpdated
from fractal.core.model import Desired
from fractal.testing.agents import Bed, bed

NAME = "test.demo.localhost"


@pytest.fixture
async def attic(tmp_path: Path) -> AsyncIterator[Bed]:
    """An app behind a public name, served and led to by one device."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    async with bed(tmp_path) as made:
        await made.start("Attic", "host", "gateway", https_port=port)
        await made.found("Attic")
        await made.call("Attic", "gateway.add", device="Attic", address="demo.localhost")
        await made.install("Attic")
        await made.until(lambda: made.at("Attic").certificate(NAME))
        yield made


async def walked(bed: Bed, *, about: str = "") -> list[str]:
    """What the walk finds; with `about`, what it finds once that is among it."""
    for _ in range(100):
        found = await bed.at("Attic").walk(NAME)
        assert all(b.remedy for b in found)
        texts = [b.what for b in found]
        if any(about in text for text in texts) if about else not texts:
            return texts
        await bed.agents["Attic"].clock.sleep(0.1)
    raise AssertionError(texts)


async def test_all_is_well_and_then_each_stretch_breaks(attic: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await walked(attic) == []
    findings = (await attic.call("Attic", "doctor.run"))["findings"]
    assert not [f for f in findings if "route" in f["check"]]
    agent, here, app = attic.agents["Attic"], attic.at("Attic"), attic.app("Attic")

    # Name: none such.
    assert (await here.walk("nowhere.demo.localhost"))[0].remedy.startswith("homeserver route add")
    # Gateway: without a public address.
    await here.journal.append(DeviceUpdated(device=here.me, address=""))
    await walked(attic, about="no public address")
    await here.journal.append(DeviceUpdated(device=here.me, address="demo.localhost"))
    # A client's way in, to the device's end of TLS.
    for listener in agent.transport._gateway._listeners.values():  # type: ignore[attr-defined]
        await listener.close()
    await walked(attic, about="a connection through this gateway fails")
    # Guard and log.
    agent.guard_problem = "does not answer"
    assert any("guard" in text for text in [b.what for b in await here.walk(NAME)])
    here.journal.proof_sent = None
    assert any("has not read the log" in b.what for b in await here.walk(NAME))
    # Clock of the others.
    other = "f" * 20
    skewed = Beat(
        device=other,
        run=1,
        number=1,
        wall_ms=agent.clock.wall_ms() + 3 * SKEW_MS,
        heard=agent.clock.boottime(),
    )
    here.beats[other] = skewed
    state = here.journal._state
    device = replace(state.devices[here.me], id=other, name="Other")
    monkeypatch.setattr(here.journal, "_state", replace(state, devices={**state.devices, other: device}))
    assert any("clocks" in b.what and "Other" in b.what for b in await here.walk(NAME))
    monkeypatch.undo()
    here.beats.clear()
    # The app itself.
    await here.journal.append(AppChanged(app=app.id, desired=Desired.STOPPED))
    await walked(attic, about="stopped by wish")


async def test_a_store_that_forgot_is_found(attic: Bed) -> None:
    assert await walked(attic) == []
    for path in [p for p in (attic.folder / "shelf").rglob("*") if p.is_file() and "/epoch" in str(p)]:
        path.rename(attic.folder / path.name)
    found = await walked(attic, about="store Shelf")
    assert len(found) == 1
