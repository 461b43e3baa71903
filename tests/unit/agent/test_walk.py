"""The doctor's walk along a route, on a real device that is host and gateway at once: each break is found, with a remedy."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from fractal.agent.beats import Beat
from fractal.agent.outside import Visit
from fractal.agent.walk import SKEW_MS, _port
from fractal.api.certificates import make_certificate
from fractal.api.errors import BackendError
from fractal.api.snapshot import Usage
from fractal.core.entries import AppChanged, DeviceUpdated
from fractal.core.model import Desired
from fractal.shell.entropy import SystemEntropy
from fractal.shell.outside import SystemOutside
from fractal.testing.agents import Bed, bed

NAME = "test.demo.localhost"
SELF = frozenset({"127.0.0.1"})


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


async def walked(bed: Bed, *, about: str = "", spoil: Callable[[], None] = lambda: None) -> list[str]:
    """What the walk finds; with `about`, what it finds once that is among it.

    The agent goes on meanwhile and may mend what a test spoiled: `spoil` does it again before each look.
    """
    for _ in range(100):
        spoil()
        found = await bed.at("Attic").walk(NAME)
        assert all(b.remedy for b in found)
        texts = [b.what for b in found]
        if any(about in text for text in texts) if about else not texts:
            return texts
        await bed.agents["Attic"].clock.sleep(0.1)
    raise AssertionError(texts)


async def test_all_is_well_and_then_each_stretch_breaks(attic: Bed) -> None:
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
    await walked(attic, about="a client does not get through: 127.0.0.1 port")
    # Guard and log.
    await walked(attic, about="guard", spoil=lambda: setattr(agent, "guard_problem", "does not answer"))
    await walked(attic, about="has not read the log", spoil=lambda: setattr(here.journal, "proof_sent", None))
    # Clock of the others.
    other = "f" * 20
    skewed = Beat(
        device=other,
        run=1,
        number=1,
        wall_ms=agent.clock.wall_ms() + 3 * SKEW_MS,
    )
    device = replace(here.state.devices[here.me], id=other, name="Other")

    def meet() -> None:
        here.beats[other], here.heard[other] = skewed, agent.clock.boottime()
        state = here.journal._state
        here.journal._state = replace(state, devices={**state.devices, other: device})

    found = await walked(attic, about="clocks", spoil=meet)
    assert any("clocks" in text and "Other" in text for text in found)
    state = here.journal._state
    here.journal._state = replace(state, devices={k: d for k, d in state.devices.items() if k != other})
    here.beats.clear()
    here.heard.clear()
    # The app itself.
    await here.journal.append(AppChanged(app=app.id, desired=Desired.STOPPED))
    await walked(attic, about="stopped by wish")


async def test_a_store_that_forgot_is_found(attic: Bed) -> None:
    assert await walked(attic) == []
    for path in [p for p in (attic.folder / "shelf").rglob("*") if p.is_file() and "/epoch" in str(p)]:
        path.rename(attic.folder / path.name)
    found = await walked(attic, about="store Shelf")
    assert len(found) == 1


@dataclass(frozen=True)
class Elsewhere:
    """This machine's view, but for what names lead to."""

    names: dict[str, frozenset[str]]

    async def addresses(self, name: str) -> frozenset[str]:
        if name not in self.names:
            raise BackendError("Name or service not known")
        return self.names[name]

    async def visit(self, name: str, address: str, port: int) -> Visit:
        return await SystemOutside().visit(name, address, port)


async def test_a_name_that_leads_astray_is_told_from_one_that_a_client_gets_through_by(attic: Bed) -> None:
    assert await walked(attic) == []
    agent, away = attic.agents["Attic"], frozenset({"127.0.0.77"})

    def see(**names: frozenset[str]) -> None:
        known = {name.replace("_", "."): found for name, found in names.items()}
        agent.shell = replace(agent.shell, outside=Elsewhere(known))

    see(demo_localhost=SELF)
    assert [b.what for b in await attic.at("Attic").walk(NAME)] == [
        f"the name {NAME} leads nowhere: Name or service not known"
    ]
    see(demo_localhost=SELF, test_demo_localhost=away)
    (found,) = await attic.at("Attic").walk(NAME)
    assert found.what == f"the name {NAME} leads to 127.0.0.77, which is no gateway of the group"
    assert "demo.localhost" in found.remedy
    # At home it may lead elsewhere: what counts is what a client finds there.
    see(demo_localhost=away, test_demo_localhost=SELF)
    assert await walked(attic) == []


async def test_somebody_else_who_answers_for_the_name_is_found(attic: Bed, tmp_path: Path) -> None:
    """A gateway that ends TLS itself shows a certificate that is not the app's."""
    assert await walked(attic) == []
    agent = attic.agents["Attic"]
    made = make_certificate(NAME, SystemEntropy(), agent.clock.wall_ms())
    (tmp_path / "other.pem").write_bytes(made.key + made.chain)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "other.pem")

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        writer.close()

    port = int(agent.transport.contact()["https"])
    server = await asyncio.start_server(answer, "127.0.0.78", port, ssl=context)
    try:
        there = frozenset({"127.0.0.78"})
        agent.shell = replace(agent.shell, outside=Elsewhere({NAME: there, "demo.localhost": there}))
        assert any("somebody else answers" in b.what for b in await attic.at("Attic").walk(NAME))
    finally:
        server.close()


async def test_what_runs_apps_and_holds_their_volumes_is_looked_at(
    attic: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = attic.agents["Attic"]

    async def found(check: str) -> list[str]:
        result = await attic.call("Attic", "doctor.run")
        assert {"runtime", "volumes"} <= set(result["checks"])
        return [f["what"] for f in result["findings"] if f["check"] == check and f["remedy"]]

    assert await found("runtime") == await found("volumes") == []

    async def gone() -> None:
        raise BackendError("engine at /run/x.sock: does it run?")

    async def full() -> Usage:
        return Usage(total=100 << 30, free=500 << 20)

    monkeypatch.setattr(agent.runtime, "observe", gone)
    assert await found("runtime") == ["runtime process: engine at /run/x.sock: does it run?"]
    monkeypatch.setattr(agent.snapshotter, "usage", full)
    assert await found("volumes") == ["0.5% of the file system of the volumes is free (500 MiB)"]
    monkeypatch.setattr(agent.snapshotter, "volumes", gone)
    assert await found("volumes") == ["snapshotter copy: engine at /run/x.sock: does it run?"]
    monkeypatch.undo()


@pytest.mark.parametrize(
    ("runtime", "remedy"),
    [
        ("docker", "systemctl restart docker)"),
        ("podman", "systemctl restart podman.socket)"),
        ("process", "systemctl restart homeserver)"),
        ("elsewhere", "the plugin elsewhere)"),
    ],
)
async def test_each_runtime_is_started_again_by_its_own_unit(
    attic: Bed, monkeypatch: pytest.MonkeyPatch, runtime: str, remedy: str
) -> None:
    agent = attic.agents["Attic"]

    async def gone() -> None:
        raise BackendError("does not answer")

    monkeypatch.setattr(agent.runtime, "observe", gone)
    chosen = replace(agent.config.runtime, backend=runtime)
    monkeypatch.setattr(agent, "config", replace(agent.config, runtime=chosen))
    (finding,) = [f for f in (await attic.call("Attic", "doctor.run"))["findings"] if f["check"] == "runtime"]
    assert remedy in finding["remedy"]


async def test_what_is_a_second_names_alone_is_found_too(attic: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    """A certificate that does not come, beside a first name that is well; what both share is told once."""
    here, second = attic.at("Attic"), "second.demo.localhost"
    await attic.call("Attic", "route.add", name=second, app="test")
    certificate = here.certificate
    monkeypatch.setattr(here, "certificate", lambda name: "" if name == second else certificate(name))
    here.journal.proof_sent = None
    findings = (await attic.call("Attic", "doctor.run"))["findings"]
    of_routes = [f for f in findings if "route" in f["check"]]
    assert any(second in f["check"] and "no certificate for" in f["what"] for f in of_routes)
    assert not any(NAME in f["check"] and "certificate" in f["what"] for f in of_routes)
    assert not any(second in f["check"] and "log" in f["what"] for f in of_routes)


@pytest.mark.parametrize("nonsense", [b"x" * 200_000, b"HTTP/1.1 two hundred\r\n", b""])
async def test_a_server_that_answers_nonsense_is_told_and_breaks_nothing(
    tmp_path: Path, nonsense: bytes
) -> None:
    made = make_certificate(NAME, SystemEntropy(), 1_700_000_000_000)
    (tmp_path / "one.pem").write_bytes(made.key + made.chain)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "one.pem")

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(nonsense)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    try:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(BackendError, match=r"does not answer in HTTP|hangs up"):
            await SystemOutside().visit(NAME, "127.0.0.1", port)
    finally:
        server.close()


@pytest.mark.parametrize(
    ("said", "port"), [("8443", 8443), ("0", 443), ("65536", 443), ("9" * 30, 443), ("-1", 443)]
)
def test_a_gateway_that_names_no_port_is_looked_for_at_the_usual_one(said: str, port: int) -> None:
    assert _port(said) == port
