"""Which bases count as committed: not those that were chosen for an epoch that was over, as long as only that one starts from them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from fractal.agent.local import Local
from fractal.api.canonical import encode
from fractal.api.plain import to_plain
from fractal.core.model import Point
from fractal.sim.invariants import Truth

BASE = Point(epoch=1, number=5)


def test_a_base_that_came_too_late_counts_once_another_epoch_starts_from_it() -> None:
    wrong: list[str] = []
    world = SimpleNamespace(
        volume=lambda app: f"v.{app}",
        loop=SimpleNamespace(time=lambda: 9.0),
        wrong=lambda *a: wrong.append(str(a)),
    )
    truth = Truth(cast("Any", world))
    disk = SimpleNamespace(held={"v.x": {"t-1-5": {"count": "7"}}}, taken={}, written={})
    machine = cast("Any", SimpleNamespace(name="d1", disk=disk))
    truth.owners = {("x", 1): "d0", ("x", 2): "d1", ("x", 3): "d0"}

    def note(root: int) -> None:
        facts = Local(root=root, committed=BASE).named(BASE, "t-1-5")
        truth.noted(machine, {"app/g/x": encode(to_plain(facts))})

    note(2)  # epoch 3 stands already: nobody was told that this is committed
    assert truth.committed == {}
    note(0)  # what it had made of it was put aside
    assert truth.committed == {}
    truth.owners["x", 4] = "d1"
    note(4)
    assert set(truth.committed) == {("x", BASE)}
    assert not wrong
