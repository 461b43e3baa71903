"""What the last look at a simulated world makes of a device that holds many snapshots."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from fractal.sim.audit import LEFT_OVER, MAKES_ROOM, Auditor

CHAIN: dict[str, dict[str, str]] = {f"p-1-{number}": {} for number in range(1, LEFT_OVER + 9)}


def audited(held: dict[str, Any], room_at: float) -> tuple[Auditor, list[str], SimpleNamespace]:
    """A device that holds this and makes room at that instant; what is found wrong, and the time."""
    loop = SimpleNamespace(now=600.0)
    loop.time = lambda: loop.now
    machine = SimpleNamespace(name="d0", lost=False, removed=False, disk=SimpleNamespace(held={"v": held}))
    wrong: list[str] = []

    async def sleep(seconds: float) -> None:
        loop.now += seconds
        if loop.now >= room_at:
            held.clear()

    truth = SimpleNamespace(
        checks=0,
        last={"d0": SimpleNamespace(position=1)},
        local=lambda _machine, _app: SimpleNamespace(queue=()),
    )
    world = SimpleNamespace(
        machines=[machine],
        truth=truth,
        loop=loop,
        auditor=SimpleNamespace(clock=SimpleNamespace(sleep=sleep)),
        volume=lambda _: "v",
        wrong=lambda invariant, text: wrong.append(f"{invariant}: {text}"),
    )
    return Auditor(cast("Any", world)), wrong, loop


async def test_who_has_just_fetched_a_whole_chain_may_start_the_app_first() -> None:
    """Seed 5452: the last look fell into the two seconds between a taker's restore and its first snapshot."""
    auditor, wrong, loop = audited(dict(CHAIN), room_at=603.0)
    await auditor.piles("aaaa")
    assert wrong == [] and loop.now == 603.0


@pytest.mark.parametrize("room_at", [600.0 + MAKES_ROOM + 1, float("inf")])
async def test_who_holds_it_for_longer_is_found(room_at: float) -> None:
    auditor, wrong, _ = audited(dict(CHAIN), room_at)
    await auditor.piles("aaaa")
    assert len(wrong) == 1 and wrong[0].startswith(f"I6: d0 keeps {len(CHAIN)} snapshots of aaaa")


async def test_nobody_is_waited_for_without_need() -> None:
    auditor, wrong, loop = audited({"p-1-1": {}}, room_at=0.0)
    await auditor.piles("aaaa")
    assert wrong == [] and loop.now == 600.0
