"""The journal without keys, with checkpoints, beside other devices, and after a removal."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fractal.agent.journal import PAGE, SAVE_EVERY, Journal, Stale
from fractal.agent.notes import MemoryNotes
from fractal.api.coordination import MAX_ENTRY, Page
from fractal.api.errors import BackendError, Corrupt, Denied
from fractal.builtin.memory_log import MemoryCoordinator, MemoryHub
from fractal.core.entries import Answered, Challenged, GroupChanged, Took
from fractal.core.log import checkpoint_bytes, state_hash
from fractal.testing.context import real_context
from fractal.testing.group import World
from fractal.testing.journal_bench import APP, Bench, proof


async def test_without_a_key_nothing_is_proved_until_it_comes(world: World) -> None:
    keys, world.group_keys = world.group_keys, {}
    bench = Bench(world, "kitchen")
    world.group_keys = keys
    await bench.journal.poll(0)
    assert bench.journal.state.sealed_out == 1
    assert proof(bench.journal) is None
    with pytest.raises(Denied):
        await bench.journal.append(Challenged(device=world.machines["attic"].id))
    with pytest.raises(Denied):
        bench.journal.group_key()
    journal = bench.restart()
    await journal.poll(0)
    assert proof(journal) is None
    journal.add_keys(keys)
    assert state_hash(journal.state) == state_hash(world.state)
    await journal.poll(0)
    assert proof(journal) is not None
    assert bench.restart().group_key() == (1, keys[1])


async def test_a_long_blindness_does_not_overwrite_what_was_folded_before(world: World) -> None:
    world.join("den", "cat")
    bench = Bench(world, "den")
    world.remove("den")
    new = world.group_keys[2]
    world.must("attic", GroupChanged(name="sealed"))
    for number in range(2 * SAVE_EVERY):
        world.put(b"noise %d" % number)
    bench.log.entries, bench.log.page = list(world.log), 7
    await bench.journal.poll(0)
    journal = bench.restart()
    await journal.poll(0)
    journal.add_keys({2: new})
    assert state_hash(journal.state) == state_hash(world.state)


async def test_begins_with_a_checkpoint_and_ends_like_the_others(world: World) -> None:
    data, expected = checkpoint_bytes(world.state), state_hash(world.state)
    world.must("kitchen", GroupChanged(name="since"))
    bench = Bench(world, "kitchen")
    bench.journal.adopt(data, expected)
    bench.log.page = 2
    await bench.journal.poll(0)
    assert state_hash(bench.journal.state) == state_hash(world.state)
    assert state_hash(bench.restart().state) == state_hash(world.state)
    with pytest.raises(Denied):
        bench.journal.adopt(data, expected)


async def test_a_checkpoint_of_another_history_is_dropped_for_the_log(world: World) -> None:
    other = replace(world.state, head=bytes(32), name="made up")
    bench = Bench(world, "kitchen")
    with pytest.raises(Corrupt):
        bench.journal.adopt(checkpoint_bytes(other), state_hash(world.state))
    bench.journal.adopt(checkpoint_bytes(other), state_hash(other))
    for page in (2, 500):
        bench.log.page = page
        await bench.journal.poll(0)
    assert state_hash(bench.journal.state) == state_hash(world.state)
    assert bench.restart().state.name == "Group 1"


async def test_a_log_shorter_than_the_checkpoint_proves_nothing(world: World) -> None:
    bench = Bench(world, "kitchen")
    bench.journal.adopt(checkpoint_bytes(world.state), state_hash(world.state))
    bench.log.entries = world.log[:2]
    await bench.journal.poll(0)
    assert proof(bench.journal) is None


async def test_show_tells_kinds_and_reasons(bench: Bench) -> None:
    bench.log.entries.append(b"noise")
    await bench.journal.poll(0)
    shown: list[Mapping[str, Any]] = bench.journal.show()
    assert [line["kind"] for line in shown] == [
        "group.created",
        "device.approved",
        "store.added",
        "app.installed",
        "",
    ]
    assert [bool(line["skipped"]) for line in shown] == [False] * 4 + [True]
    assert bench.journal.show(after=4)[0]["position"] == 5


async def test_a_removed_device_learns_it_and_falls_silent(world: World) -> None:
    world.join("den", "cat")
    bench = Bench(world, "den")
    await bench.journal.poll(0)
    before = proof(bench.journal)
    world.remove("den")
    bench.log.entries = list(world.log)
    bench.clock.now += 10
    await bench.journal.poll(0)
    assert bench.journal.state.left
    assert proof(bench.journal) == before
    with pytest.raises(Denied, match="removed"):
        await bench.journal.append(Answered(seen=1))
    assert bench.log.appends == 0


async def test_three_devices_on_the_memory_log_race_and_agree(world: World, tmp_path: Path) -> None:
    world.join("den", "cat")
    hub = MemoryHub()
    async with real_context(tmp_path) as context:
        address = await MemoryCoordinator(context, hub).create("0" * 32, "")
        for number, raw in enumerate(world.log):
            await MemoryCoordinator(context, hub).append(address, f"old-{number}", raw)
        journals = [
            Journal(
                group=world.state.id,
                address=address,
                coordinator=MemoryCoordinator(replace(context, device=machine.id), hub),
                keys=machine.keys,
                notes=MemoryNotes(),
                clock=context.clock,
                entropy=context.entropy,
                group_keys=world.group_keys,
            )
            for machine in world.live()
        ]
        attic = world.machines["attic"].id

        async def take(journal: Journal) -> bool:
            try:
                await journal.append(Took(epochs={APP: 1}), wanted=lambda state: state.apps[APP].epoch == 0)
            except (Stale, Denied):
                return False
            return True

        won = await asyncio.gather(*(take(j) for j in journals))
        said = await asyncio.gather(*(j.append(Answered(seen=1)) for j in journals for _ in range(5)))
        await asyncio.gather(*(j.poll(0) for j in journals))
    assert sum(won) == 1
    assert len(set(said)) == 15
    assert len({state_hash(j.state) for j in journals}) == 1
    assert {j.state.forked for j in journals} == {""}
    assert journals[0].state.apps[APP].owner in {m.id for m in world.live()}
    assert attic in journals[0].state.answers


@pytest.mark.parametrize("flood", [(b"x" * (MAX_ENTRY + 1),), (b"",), (b"x",) * (PAGE + 1)])
async def test_what_no_log_takes_is_not_kept_and_proves_nothing(
    bench: Bench, flood: tuple[bytes, ...]
) -> None:
    """A hostile server must not fill this device's memory and disk, nor count as read."""
    await bench.journal.poll(0)
    before, state = proof(bench.journal), bench.journal.state
    writes = bench.notes.writes
    honest = bench.log.read

    async def read(address: str, after: str | None, *, limit: int = 500, wait: float = 0.0) -> Page:
        return Page(flood, "9", head=True)

    bench.log.read = read  # type: ignore[method-assign]  # the server turns hostile
    with pytest.raises(BackendError, match="impossible size"):
        await bench.journal.poll(0)
    assert (proof(bench.journal), bench.journal.state, bench.notes.writes) == (before, state, writes)
    bench.log.read = honest  # type: ignore[method-assign]  # and back
    bench.others_say("kitchen", GroupChanged(name="goes on"))
    assert await bench.journal.poll(0)
    assert bench.journal.state.name == "goes on"
