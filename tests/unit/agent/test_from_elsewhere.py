"""Commands about an app, given at a device that neither runs it nor may read it; and what such a device must not get."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from fractal.agent.fork_key import QUESTION, _told
from fractal.agent.remote import RemoteError
from fractal.api.errors import Corrupt, Denied, FractalError, Unreachable
from fractal.core.entries import AppInstalled
from fractal.core.model import AppKey, Point, Source
from fractal.testing.agents import Bed, bed, manifest, service

PASSWORD = "the app's password"
SECRET = manifest(service().replace("environment: {", 'environment: {PIN: "{secret.pin}", ')).replace(
    "x-homeserver:\n  title", "x-homeserver:\n  secrets: {generate: [pin]}\n  title"
)


@pytest.fixture
async def beds(tmp_path: Path) -> AsyncIterator[Bed]:
    """The owner's attic runs an app with a secret; the owner's door hosts nothing; the den is another member's."""
    async with bed(tmp_path) as made:
        await made.start("attic")
        await made.start("door", "gateway")
        await made.start("den")
        await made.found("attic")
        await made.join("door", by="attic")
        await made.join("den", by="attic", new_member=True)
        await made.install("attic", SECRET, secrets={"pin": PASSWORD})
        owner = made.agents["attic"].keys.id
        await made.until(lambda: made.app("door").owner == owner == made.app("den").owner)
        await made.until(lambda: made.agents["den"].keys.id in made.app("den").keys[-1].sealed)
        assert (await made.call("attic", "snapshot.create", app="test", wait_s=60))["done"]
        await made.until(lambda: all(len(made.at(n).beats) == 2 for n in ("attic", "door", "den")))
        yield made


def app_named(bed: Bed, device: str, name: str) -> Any:
    return next(a for a in bed.at(device).state.apps.values() if a.name == name and not a.removed)


async def test_every_command_about_an_app_works_from_a_device_that_neither_runs_nor_reads_it(
    beds: Bed,
) -> None:
    door, attic = beds.at("door"), beds.at("attic")
    with pytest.raises(FractalError):
        door.jobs[beds.app("door").id].data.secrets()

    taken = await beds.call("door", "snapshot.create", app="test", wait_s=30)
    assert taken["done"]
    moments = (await beds.call("door", "snapshot.list", app="test"))["snapshots"]
    assert taken["moment"] in [m["moment"] for m in moments]
    report = await beds.call("door", "snapshot.verify", app="test", deep=True)
    assert report["problems"] == []
    assert report["objects"] > 0
    assert (await beds.call("door", "app.exec", app="test", argv=["true"]))["exit_code"] == 0
    await beds.call("door", "app.logs", app="test")
    changed = await beds.call("door", "app.policy", app="test", interval_s=20)
    assert changed["policy"]["interval_s"] == 20
    assert (await beds.call("door", "app.stop", app="test", wait_s=40))["done"]
    assert (await beds.call("door", "app.start", app="test", wait_s=40))["done"]
    back = await beds.call("door", "app.restore", app="test", at=taken["moment"], wait_s=40)
    assert back["done"]
    moved = await beds.call("door", "app.move", app="test", device="den", wait_s=60)
    assert moved["done"], await beds.call("door", "status.show")
    moved = await beds.call("door", "app.move", app="test", device="attic", wait_s=60)
    assert moved["done"], await beds.call("door", "status.show")
    assert attic.jobs[beds.app("attic").id].data.secrets()["pin"] == PASSWORD


async def test_a_device_that_cannot_read_an_app_forks_it_and_still_cannot_read_it(
    beds: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    door, attic = beds.at("door"), beds.at("attic")
    taken = await beds.call("door", "snapshot.create", app="test", wait_s=30)
    answers: list[Any] = []
    ask = door.remote.ask

    async def recorded(*arguments: Any) -> Any:
        answers.append(await ask(*arguments))
        return answers[-1]

    monkeypatch.setattr(door.remote, "ask", recorded)
    result = await beds.call(
        "door", "app.fork", app="test", name="test 2", at=taken["moment"], device="attic", wait_s=60
    )
    assert result["done"], await beds.call("attic", "status.show")
    fork = app_named(beds, "attic", "test 2")
    assert attic.jobs[fork.id].data.secrets()["pin"] == PASSWORD
    assert fork.owner_member == door.state.devices[door.me].member
    assert fork.secrets["pin"] != beds.app("attic").secrets["pin"]

    assert len(answers) == 1
    assert PASSWORD not in json.dumps(answers[0])
    keys = beds.agents["door"].keys
    (key,) = app_named(beds, "door", "test 2").keys
    assert door.me not in key.sealed
    for sealed in (*key.sealed.values(), *fork.secrets.values()):
        with pytest.raises(Corrupt):
            keys.unseal(sealed)
    with pytest.raises(FractalError):
        door.jobs[fork.id].data.secrets()


async def test_asking_gives_nobody_a_right_that_he_does_not_have(beds: Bed) -> None:
    attic, den, door = beds.at("attic"), beds.at("den"), beds.at("door")
    question = {"app": beds.app("den").id}
    # A plain member, about somebody else's app; even one that holds the app's key may not fork it by itself.
    with pytest.raises(RemoteError, match="belongs to somebody else"):
        await den.remote.ask(attic.me, QUESTION, question)
    with pytest.raises(Denied, match="only who manages"):
        await beds.call("den", "app.fork", app="test", name="stolen", device="den")
    # A device that cannot read it has nothing to give, and says so.
    with pytest.raises(RemoteError):
        await attic.remote.ask(door.me, QUESTION, question)
    for wrong in ({"app": "0" * 16}, {"app": 7}, {}):
        with pytest.raises(RemoteError, match="unknown member or app"):
            await door.remote.ask(attic.me, QUESTION, wrong)

    # An admin manages everybody's apps; what the owner keeps to its own devices still goes to no other member's by asking.
    await beds.call("attic", "member.role", member="den", role="admin")
    await beds.call("attic", "app.policy", app="test", trust="member")
    await beds.until(lambda: beds.app("den").policy.trust == "member" == beds.app("attic").policy.trust)
    with pytest.raises(RemoteError, match="keeps its secrets to the devices of its owner"):
        await den.remote.ask(attic.me, QUESTION, question)

    # What was answered to one is worth nothing in another's hands: the fold asks who signs the entry.
    await beds.call("attic", "member.role", member="den", role="member")
    await beds.until(lambda: den.state.members[den.state.devices[den.me].member].role.value == "member")
    answer = (await door.remote.ask(attic.me, QUESTION, question))["result"]
    origin = beds.app("den")
    made = _told("attic", answer, {"pin"}, {attic.me})
    taken = await beds.call("attic", "snapshot.create", app="test", wait_s=30)
    epoch, number = map(int, taken["moment"].split("."))
    entry = AppInstalled(
        app="ab" * 8,
        name="stolen",
        manifest=origin.manifest,
        spec=origin.spec,
        store=origin.store,
        placed=attic.me,
        key=made.key,
        policy=origin.policy,
        source=Source(app=origin.id, point=Point(epoch=epoch, number=number)),
        secrets=made.secrets,
    )
    with pytest.raises(Denied):
        await den.journal.append(entry)
    assert "ab" * 8 not in attic.state.apps


async def test_no_device_that_could_answer(beds: Bed) -> None:
    await beds.stop("attic")
    await beds.stop("den")
    door = beds.at("door")
    await beds.until(lambda: not any(door.online(d) for d in door.state.devices if d != door.me))
    before = set(door.state.apps)
    with pytest.raises(Unreachable, match="attic"):
        await beds.call("door", "app.fork", app="test", name="test 2", wait_s=0)
    assert set(door.state.apps) == before


KEY = {"generation": 1, "public": "AA", "sealed": {"d": "AA"}}


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"key": KEY},
        {"key": KEY, "secrets": 3},
        {"key": KEY, "secrets": {"pin": 3}},
        {"key": 3, "secrets": {"pin": "AA"}},
        {"key": {**KEY, "more": 1}, "secrets": {"pin": "AA"}},
        {"key": {**KEY, "generation": 2}, "secrets": {"pin": "AA"}},
        {"key": {**KEY, "sealed": {"stranger": "AA"}}, "secrets": {"pin": "AA"}},
        {"key": KEY, "secrets": {}},
        {"key": KEY, "secrets": {"pin": "AA", "more": "AA"}},
    ],
)
def test_a_holder_that_answers_nonsense_is_told_so(answer: dict[str, Any]) -> None:
    with pytest.raises(Corrupt, match="attic gave"):
        _told("attic", answer, {"pin"}, {"d"})


def test_an_answer_of_the_right_form_is_taken() -> None:
    made = _told("attic", {"key": KEY, "secrets": {"pin": "AA"}}, {"pin"}, {"d"})
    assert made.key == AppKey(generation=1, public=b"\0", sealed={"d": b"\0"})
    assert made.secrets == {"pin": b"\0"}
