"""Housekeeping of whole agents: keys after a removal, checkpoints, joins that go on, ends that say so, archives looked after."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path

import pytest

from fractal.agent import checkpoints, membership
from fractal.agent.agent import Agent
from fractal.agent.care import DAY_MS, Cared
from fractal.agent.journal import Journal
from fractal.agent.main import first_words, run_until
from fractal.agent.notes import MemoryNotes
from fractal.api.errors import BackendError, NotFound
from fractal.api.store import ObjectInfo, Store
from fractal.archive import layout
from fractal.archive.epochs import Rollback
from fractal.archive.images import PLACE
from fractal.archive.verify import VerifyReport
from fractal.core.entries import GroupChanged
from fractal.core.log import checkpoint_bytes, fold, state_hash
from fractal.core.model import GroupState, StoreEntry
from fractal.crypto.keys import unseal_with
from fractal.shell.notify import Notifier
from fractal.testing.agents import Bed, bed


@pytest.fixture
async def beds(tmp_path: Path) -> AsyncIterator[Bed]:
    async with bed(tmp_path) as made:
        yield made


@pytest.fixture
async def attic(beds: Bed) -> Bed:
    """One device with an empty group."""
    await beds.start("Attic")
    await beds.found("Attic")
    return beds


# --- keys and secrets ------------------------------------------------------------------------------------------------


async def test_secrets_follow_the_key_when_a_device_goes(attic: Bed) -> None:
    await attic.start("Kitchen")
    await attic.join("Kitchen", by="Attic")
    await attic.until(lambda: len(attic.at("Attic").state.devices) == 2)
    await attic.install("Attic", secrets={"password": "canary"})
    await attic.until(lambda: attic.agents["Kitchen"].keys.id in attic.app("Attic").keys[-1].sealed)
    old = attic.at("Attic").agent
    kitchen = attic.agents["Kitchen"].keys
    before = attic.app("Attic")
    held = kitchen.unseal(before.keys[-1].sealed[kitchen.id])
    assert unseal_with(held, before.secrets["password"]) == b"canary"
    await attic.stop("Kitchen")
    await attic.call("Attic", "device.remove", device="Kitchen")
    # The owner opens them with the old generation at once, and seals them to the new one before long.
    assert attic.job("Attic").data.secrets()["password"] == "canary"
    await attic.until(lambda: not attic.job("Attic").data.outdated())
    after = attic.app("Attic")
    assert after.keys[-1].generation == 2 and kitchen.id not in after.keys[-1].sealed
    assert after.secrets["password"] != before.secrets["password"]
    newest = old.keys.unseal(after.keys[-1].sealed[old.keys.id])
    assert unseal_with(newest, after.secrets["password"]) == b"canary"
    assert (await attic.call("Attic", "app.show", app="test"))["app"]["health"] == "healthy"


async def test_the_owner_renews_a_key_that_a_removed_device_holds(attic: Bed) -> None:
    """Bob, a plain member, removes his own device: he cannot re-key Ann's app, its owner does."""
    for name in ("Den", "Shed"):
        await attic.start(name)
    await attic.join("Den", by="Attic", new_member=True)
    await attic.join("Shed", by="Den")
    await attic.until(lambda: len(attic.at("Attic").state.devices) == 3)
    await attic.install("Attic")
    shed = attic.agents["Shed"].keys.id
    await attic.until(lambda: shed in attic.app("Attic").keys[-1].sealed)
    await attic.stop("Shed")
    await attic.call("Den", "device.remove", device="Shed")
    await attic.until(lambda: attic.app("Attic").keys[-1].generation == 2)
    assert shed not in attic.app("Attic").keys[-1].sealed
    assert attic.agents["Den"].keys.id in attic.app("Attic").keys[-1].sealed


# --- checkpoints and memory ------------------------------------------------------------------------------------------


def replayed(entries: list[bytes], journal: Journal) -> GroupState:
    state = GroupState(id=journal.group)
    for raw in entries:
        state = fold(state, raw, journal.opener)
    return state


async def test_who_joins_late_begins_with_a_checkpoint(
    attic: Bed, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(checkpoints, "MIN_ENTRIES", 8)
    journal = attic.at("Attic").journal
    for number in range(10):
        await journal.append(GroupChanged(name=f"name {number}"))
    await attic.until(lambda: journal.state.checkpoint is not None)
    monkeypatch.setattr(checkpoints, "MIN_ENTRIES", 10**6)  # one is enough
    await attic.start("Kitchen")
    await attic.join("Kitchen", by="Attic")
    group = attic.group
    notes = attic.agents["Kitchen"].notes
    assert notes.get(f"group/{group}/base") is not None
    late = attic.at("Kitchen").journal
    await attic.until(lambda: state_hash(late.state) == state_hash(journal.state))
    assert state_hash(late.state) == state_hash(replayed([raw for _, raw in late.entries()], late))
    # Its store gone, another one starts from the beginning and knows the same.
    for path in sorted((attic.folder / "shelf").rglob("*checkpoint*"), reverse=True):
        path.rename(path.with_name("lost"))
    await attic.start("Den")
    caplog.set_level(logging.INFO)
    await attic.join("Den", by="Attic")
    assert attic.agents["Den"].notes.get(f"group/{group}/base") is None
    den = attic.at("Den").journal
    await attic.until(lambda: state_hash(den.state) == state_hash(journal.state))
    assert "folded from its beginning" in caplog.text


async def test_a_store_that_forgot_an_epoch_is_seen_after_a_restart_too(attic: Bed) -> None:
    await attic.install("Attic")
    await attic.stop("Attic")
    hidden = [p for p in (attic.folder / "shelf").rglob("*") if p.is_file() and "/epoch" in str(p)]
    for path in hidden:
        path.rename(attic.folder / path.name)
    await attic.start("Attic")
    await attic.until(lambda: attic.app("Attic"))
    with pytest.raises(Rollback):
        await attic.at("Attic").list_epochs(attic.app("Attic").store)


async def test_a_gateway_leaves_stores_alone_and_never_has_the_turn_to_write_a_checkpoint(
    beds: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first by id is a gateway without a way into any store: nothing waits for it."""
    keys = {(await beds.start(name)).keys.id: name for name in ("Attic", "Kitchen")}
    gate, host = (keys[device] for device in sorted(keys))
    await beds.stop(gate)
    config = beds.folder / gate / "config.toml"
    config.write_text(config.read_text().replace('roles = ["host"]', 'roles = ["gateway"]'))
    await beds.found(host)
    tried: list[str] = []

    def refuse(agent: Agent, entry: StoreEntry) -> AbstractAsyncContextManager[Store]:
        if agent.keys.id == min(keys):
            tried.append(entry.name)
            raise BackendError("no way there")
        return usual(agent, entry)

    usual = Agent.open_store
    await beds.start(gate)
    monkeypatch.setattr(Agent, "open_store", refuse)
    await beds.join(gate, by=host)
    await beds.install(host)
    monkeypatch.setattr(checkpoints, "MIN_ENTRIES", 8)
    journal = beds.at(host).journal
    for number in range(10):
        await journal.append(GroupChanged(name=f"name {number}"))
    await beds.until(lambda: journal.state.checkpoint is not None)
    assert not tried


# --- coming and going ------------------------------------------------------------------------------------------------


async def test_a_join_goes_on_after_a_restart(attic: Bed) -> None:
    kitchen = await attic.start("Kitchen")
    code = (await attic.call("Attic", "group.invite"))["code"]
    result = await attic.call("Kitchen", "group.join", code=code, wait_s=0)
    assert result["state"] == "waiting"
    await attic.stop("Kitchen")
    await attic.until(lambda: kitchen.keys.id in attic.at("Attic").state.requests)
    await attic.call("Attic", "device.approve", device="Kitchen")
    kitchen = await attic.start("Kitchen")
    await attic.until(lambda: attic.group in kitchen.groups)
    await attic.until(lambda: kitchen.keys.id in attic.at("Kitchen").state.devices)
    assert not membership.pending_joins(kitchen.notes)


async def test_an_orderly_end_comes_to_rest_and_says_that_it_is_away(attic: Bed) -> None:
    await attic.start("Kitchen")
    await attic.join("Kitchen", by="Attic")
    await attic.install("Attic")
    await attic.until(
        lambda: attic.agents["Attic"].groups[attic.group].online(attic.agents["Kitchen"].keys.id)
    )
    await attic.stop("Kitchen")
    # The other one is silent: nobody takes the app, so it rests here and the others are asked to wait.
    here = attic.at("Attic")
    await attic.until(lambda: not here.online(next(d for d in here.state.devices if d != here.me)))
    await here.agent.hand_over()
    assert not attic.job("Attic").runs()
    assert not attic.job("Attic").facts.now.queue
    ahead = here.state.devices[here.me].away_until - here.agent.clock.wall_ms()
    assert 0 < ahead <= 300_000
    await attic.stop("Attic")
    await attic.start("Attic")
    await attic.until(lambda: attic.at("Attic").state.devices and attic.app("Attic"))
    await attic.until(lambda: attic.at("Attic").state.devices[here.me].away_until == 0)
    await attic.until(lambda: attic.job("Attic").health() is not None)


async def test_an_end_without_others_says_nothing(attic: Bed) -> None:
    await attic.install("Attic")
    here = attic.at("Attic")
    await here.agent.hand_over()
    assert not attic.job("Attic").runs()
    # Neither that it is away, nor that it lets the app go.
    assert here.state.devices[here.me].away_until == 0
    assert (attic.app("Attic").owner, attic.app("Attic").release) == (here.me, None)


async def told(path: Path, stop_at: bytes, bed: Bed) -> list[bytes]:
    """Run the agent under a supervisor until it says something; all that it said."""
    heard: list[bytes] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(path))
        listener.setblocking(False)
        agent, stop = bed.agents["Attic"], asyncio.Event()
        notifier = Notifier({"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "2000000"})
        running = asyncio.create_task(run_until(stop, agent, notifier))
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(60):
                while not any(stop_at in said for said in heard):
                    heard.append(await loop.sock_recv(listener, 4096))
                stop.set()
                while not any(b"STOPPING=1" in said for said in heard):
                    heard.append(await loop.sock_recv(listener, 4096))
                await running
        finally:
            running.cancel()
            await asyncio.wait([running])
    return heard


async def test_who_starts_the_agent_reads_what_it_is_and_what_comes_next(attic: Bed) -> None:
    agent, path = attic.agents["Attic"], Path("/run/control.sock")
    name = attic.at("Attic").journal.state.name
    assert first_words(agent, path) == f"agent of Attic runs, listens on {path}; groups: {name}"
    groups, agent.groups = agent.groups, {}
    assert "next: homeserver group create" in first_words(agent, path)
    agent.groups = groups


async def test_the_supervisor_hears_ready_after_the_logs_were_read(attic: Bed, tmp_path: Path) -> None:
    heard = await told(tmp_path / "notify", b"READY=1", attic)
    assert any(b"WATCHDOG=1" in said for said in heard)
    ready = next(said for said in heard if b"READY=1" in said)
    assert b"not yet read" not in ready
    assert attic.at("Attic").journal.proof_sent is not None


async def test_ready_comes_also_when_a_log_cannot_be_read(
    attic: Bed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fractal.agent.main.FIRST_READS", 1.0)
    here = attic.at("Attic")
    here.journal.proof_sent, here.log_problem = None, ""

    async def never(wait: float) -> bool:
        await asyncio.Event().wait()
        return False

    monkeypatch.setattr(here.journal, "poll", never)
    await asyncio.sleep(3)  # the poll under way ends
    here.journal.proof_sent, here.log_problem = None, ""
    heard = await told(tmp_path / "notify", b"READY=1", attic)
    ready = next(said for said in heard if b"READY=1" in said)
    assert b"not yet read: the log of Group 1" in ready


def test_an_end_is_shorter_than_the_unit_allows() -> None:
    from importlib.resources import files

    from fractal.agent.agent import HANDING_OVER, RESTING, SAYING_AWAY

    unit = files("fractal.cli").joinpath("data", "homeserver.service").read_text()
    allowed = next(int(line.partition("=")[2]) for line in unit.splitlines() if "TimeoutStopSec" in line)
    assert allowed >= HANDING_OVER + RESTING + SAYING_AWAY + 20


# --- archives --------------------------------------------------------------------------------------------------------


async def test_an_archive_is_verified_daily_and_damage_is_shown(attic: Bed) -> None:
    await attic.install("Attic")
    job = attic.job("Attic")
    await attic.until(lambda: job.facts.now.committed is not None)
    await job.care.look()
    assert job.care.found.verified_ms and job.care.found.collected_ms and not job.care.problem
    segments = [p for p in (attic.folder / "shelf").rglob("*") if p.is_file() and "/object/" in str(p)]
    assert segments
    segments[0].rename(attic.folder / "elsewhere")
    await job.care.look()
    assert not job.care.problem  # not before a day is over
    job.care.found = Cared(verified_ms=job.care.found.verified_ms - DAY_MS)
    await job.care.look()
    assert "problem" in attic.note("Attic") and "snapshot verify" in attic.note("Attic")
    # Known also after a restart, and gone when it is mended.
    await attic.stop("Attic")
    await attic.start("Attic")
    await attic.until(lambda: attic.at("Attic").jobs)
    assert "problem" in attic.job("Attic").care.problem
    (attic.folder / "elsewhere").rename(segments[0])
    result = await attic.call("Attic", "snapshot.verify", app="test")
    assert result["problems"] == [] and attic.job("Attic").care.problem == ""


async def test_what_fails_is_tried_again_ever_later_and_keeps_nothing_else_from_being_done(
    attic: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    await attic.install("Attic")
    job = attic.job("Attic")
    await attic.until(lambda: job.facts.now.committed is not None)
    archive, care = await job.data.archive(), job.care
    tries = 0

    async def fails(**_: object) -> VerifyReport:
        nonlocal tries
        tries += 1
        raise BackendError("the disk is tired")

    monkeypatch.setattr(archive, "verify", fails)
    await care.look()
    await care.look()
    assert tries == 1 and "could not be checked: the disk is tired" in care.problem
    assert care.found.collected_ms and care.found.swept_ms
    pauses = []
    for _ in range(8):
        failed = care._failed["checked"]
        pauses.append(failed.pause)
        care._failed["checked"] = replace(failed, again=0.0)  # it has passed
        await care.look()
    assert pauses == [60, 120, 240, 480, 960, 1920, 3600, 3600] and tries == 9
    monkeypatch.undo()
    care._failed["checked"] = replace(care._failed["checked"], again=0.0)
    await care.look()
    assert care.problem == "" and care.found.verified_ms and not care._failed


async def test_orphans_go_only_after_a_day_and_with_proof(attic: Bed) -> None:
    await attic.install("Attic")
    job = attic.job("Attic")
    await attic.until(lambda: job.facts.now.committed is not None)
    store = (await attic.at("Attic").store(job.app.store)).store
    key = layout.segment_key(attic.group, job.id, "f" * 32, 0)
    await store.put_new(key, b"left by an upload that was broken off")
    await job.care.look()
    assert job.care.found.orphans == 1
    lost = layout.segment_key(attic.group, PLACE, "e" * 32, 0)
    await store.put_new(lost, b"of an image, likewise")
    job.care._note(collected_ms=0)
    await job.care.look()
    assert job.care.found.orphans == 2, "it is looked at every hour, else its day never comes"
    archive = await job.data.archive()

    async def no() -> bool:
        return False

    assert await archive.collect_orphans(no, grace=0.0) == []
    assert (await store.head(key)).size
    assert [o.keys for o in await archive.collect_orphans(job.care.thinning.owns_highest, grace=0.0)] == [
        (key,)
    ]
    with pytest.raises(NotFound):
        await store.head(key)
    assert (await archive.verify(deep=True)).problems == ()


async def test_a_checkpoint_and_its_tail_equal_a_replay(attic: Bed) -> None:
    journal = attic.at("Attic").journal
    for number in range(5):
        await journal.append(GroupChanged(name=f"name {number}"))
    agent = attic.agents["Attic"]
    notes = MemoryNotes()
    base, stated = checkpoint_bytes(journal.state), state_hash(journal.state)
    await journal.append(GroupChanged(name="tail"))
    keys = dict(journal.group_key(g) for g in range(1, journal.state.generation + 1))
    late = Journal(
        group=attic.group,
        address=journal.address,
        coordinator=agent.coordinator,
        keys=agent.keys,
        notes=notes,
        clock=agent.clock,
        entropy=agent.entropy,
        group_keys=keys,
    )
    late.adopt(base, stated)
    for _ in range(100):  # the agent itself may say something between the two
        await late.poll(0)
        await journal.poll(0)
        if late.state.position == journal.state.position:
            break
    assert state_hash(late.state) == state_hash(replayed([r for _, r in late.entries()], late))
    assert state_hash(late.state) == state_hash(journal.state)
    assert late.state.name == "tail"


async def test_what_is_created_during_a_listing_is_no_rollback(
    attic: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    await attic.install("Attic")
    app, here = attic.app("Attic"), attic.at("Attic")
    epochs = (await here.store(app.store)).epochs
    ask = epochs._store.list

    async def slow(prefix: str) -> AsyncIterator[ObjectInfo]:
        shown = [info async for info in ask(prefix)]
        monkeypatch.setattr(epochs._store, "list", ask)
        await epochs.create(app.id, 2, here.state.timers)
        for info in shown:
            yield info

    monkeypatch.setattr(epochs._store, "list", slow)
    assert set((await epochs.listing())[app.id]) == {1}
    assert set((await epochs.listing())[app.id]) == {1, 2}
