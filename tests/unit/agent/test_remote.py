"""Commands asked of another device: by whom, how often, and what becomes of recorded, reflected and malformed messages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from fractal.agent.group import GroupAgent
from fractal.agent.remote import AT_ONCE, MAGIC, RemoteError, _told
from fractal.api.errors import Corrupt
from fractal.crypto.keys import seal_to
from fractal.testing.agents import Bed, bed, manifest, service


@pytest.fixture
async def beds(tmp_path: Path) -> AsyncIterator[Bed]:
    """The owner's attic runs the owner's app; a plain member's den."""
    async with bed(tmp_path) as made:
        await made.start("attic")
        await made.start("den")
        await made.found("attic")
        await made.join("den", by="attic", new_member=True)
        await made.install("attic")
        await made.until(lambda: made.app("den").owner == made.agents["attic"].keys.id)
        await made.until(lambda: made.at("den").beats and made.at("attic").beats)
        yield made


def recorded(group: GroupAgent, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Every message that the group's device sends from now on, as the log server sees it."""
    sent: list[bytes] = []
    signal = group.agent.coordinator.signal

    async def record(address: str, payload: bytes, *, to: str | None = None) -> None:
        if payload.startswith(MAGIC):
            sent.append(payload)
        await signal(address, payload, to=to)

    monkeypatch.setattr(group.agent.coordinator, "signal", record)
    return sent


async def test_only_who_manages_an_app_has_commands_carried_out_and_each_once(
    beds: Bed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    attic, den = beds.at("attic"), beds.at("den")
    ran = tmp_path / "ran"

    def run(app: str) -> dict[str, Any]:
        return {"app": app, "argv": ["sh", "-c", f"echo >> {ran}"]}

    for command in ("app.exec", "app.logs", "snapshot.create", "snapshot.prune", "snapshot.verify"):
        with pytest.raises(RemoteError, match="belongs to somebody else"):
            await den.remote.ask(attic.me, command, {"app": beds.app("den").id, "argv": ["true"]})
    for command in ("app.fork", "app.remove", "device.remove", "no.such"):
        with pytest.raises(RemoteError, match="cannot be asked"):
            await den.remote.ask(attic.me, command, {"app": beds.app("den").id})
    assert not ran.exists()

    # Its own app, on somebody else's device.
    text = manifest(service(word="cats")).replace("name: test", "name: cats")
    await beds.call("den", "app.install", manifest=text, device="attic", interval_s=10, wait_s=40)
    mine = next(a.id for a in den.state.apps.values() if a.name == "cats")
    sent = recorded(den, monkeypatch)
    answer = await den.remote.ask(attic.me, "app.exec", run(mine))
    assert answer["result"]["exit_code"] == 0
    (asked,) = sent
    for _ in range(3):
        assert attic.remote.receive(asked)
        assert den.remote.receive(asked), "reflected to who sent it"
    with pytest.raises(RemoteError, match="not on this device"):
        await attic.remote.ask(den.me, "app.exec", run(mine))

    # Many at once: a few are answered, the others are told at once.
    slow = {"app": mine, "argv": ["sleep", "3"]}
    asks = [den.remote.ask(attic.me, "app.exec", slow) for _ in range(12)]
    outcomes = await asyncio.gather(*asks, return_exceptions=True)
    busy = [o for o in outcomes if isinstance(o, RemoteError) and o.code == "busy"]
    assert len(outcomes) - len(busy) <= AT_ONCE
    assert len(ran.read_text().splitlines()) == 1


async def test_what_makes_no_sense_is_dropped(beds: Bed) -> None:
    attic, den = beds.at("attic"), beds.at("den")
    box = attic.agent.keys.box_public
    for noise in (b"", b"{}", b'{"body":1,"sig":2}', b"\xff" * 100, b'{"body":"e30","sig":"e30"}'):
        assert attic.remote.receive(MAGIC + noise)
        assert attic.remote.receive(MAGIC + seal_to(box, noise, attic.agent.entropy))
    assert not attic.remote.receive(b"something else")
    await den.remote._send(attic.me, {"ask": "1", "nonce": attic.remote.nonce})
    await den.remote._send(attic.me, {"ask": "2", "nonce": attic.remote.nonce, "command": [], "params": 3})
    await den.remote._send(attic.me, {"tell": "unknown"})
    await beds.until(lambda: {"1", "2"} <= attic.remote._answered)


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"error": {}},
        {"error": 7},
        {"error": {"message": "m", "code": "c", "exit_code": "x"}},
        {"result": []},
        {"result": {}, "output": 3},
        {"result": {}, "output": [3]},
    ],
)
def test_an_answer_that_is_none_is_an_error_and_no_traceback(answer: dict[str, Any]) -> None:
    with pytest.raises(Corrupt):
        _told("attic", answer)


def test_answers_and_errors_are_told() -> None:
    assert _told("attic", {"result": {"x": 1}, "output": [{}]})["result"] == {"x": 1}
    with pytest.raises(RemoteError, match="attic: no"):
        _told("attic", {"error": {"message": "no", "code": "denied", "exit_code": 5}})
