"""More broken agents: such as go by other terms of a lease than whoever takes over from them, and what shows it.

Terms change while devices are cut off.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from random import Random

import pytest

import fractal.agent.jobs.failover as failover
import fractal.agent.terms as terms
from fractal.agent.group import GroupAgent
from fractal.agent.terms import Terms
from fractal.sim.faults import Fault
from fractal.sim.scene import Scene
from tests.sim.broken import Variant


def adopted_before_the_store_is_listed(patch: pytest.MonkeyPatch) -> None:
    ends: dict[tuple[GroupAgent, str, int], float] = {}
    wait_end = failover.wait_end

    def at_once(group: GroupAgent, app: str, epoch: int, acknowledged: float, read_back: float) -> float:
        end = wait_end(group, app, epoch, acknowledged, read_back)
        return ends.setdefault((group, app, epoch), end)

    patch.setattr(Terms, "_adopted", lambda _, now: now)
    patch.setattr(terms, "wait_end", at_once)


def own_terms_forgotten(patch: pytest.MonkeyPatch) -> None:
    def listed(self: Terms) -> int:
        job = self._job
        mine = job.group.stored(job.app).get(job.app.epoch)
        return mine.proof_ms if mine is not None else 0

    patch.setattr(Terms, "stated", property(listed))


FAST, PATIENT = 0.5, 0.9
"""Values of "timers change"."""


def course(*steps: tuple[float, str, int, float, float]) -> Callable[[int], Sequence[Fault]]:
    """Faults: (when, what, of which device, for how long, value). The first device owns the app in the beginning."""

    def drawn(seed: int) -> Sequence[Fault]:
        random = Random(seed)
        return [
            Fault(
                number=n,
                at=at + random.uniform(0.0, 0.4),
                kind=kind,
                devices=(device,),
                seconds=length,
                value=value,
            )
            for n, (at, kind, device, length, value) in enumerate(steps)
        ]

    return drawn


ONLY_READS = "reads the log, nothing else"
SCENE = Scene(faults_for=140.0, rest=60.0)

TERMS: Mapping[str, Variant] = {
    "an epoch is adopted before the store is listed": Variant(
        "I1",
        adopted_before_the_store_is_listed,
        # Its owner's last proof lasts 25 s. Who takes over waits by what the epoch's object says, and forgets that it did.
        course(
            (50.0, ONLY_READS, 0, 150.0, 0.9),
            (60.0, "killed after its put", 1, 60.0, 0.2),
            (93.0, "cut off", 0, 90.0, 0.0),
            (94.0, "timers change", 1, 1.0, FAST),
        ),
        replace(SCENE, profile="patient"),
        seeds=4,
    ),
    "an owner forgets its own terms": Variant(
        "I1",
        own_terms_forgotten,
        # Its epoch allows proofs of 5 s. It reads of 25 s, and starts again where it cannot look at its epoch's object.
        course(
            (42.0, "timers change", 1, 1.0, PATIENT),
            (48.0, "cut off from the store", 0, 150.0, 0.0),
            (50.0, "agent killed", 0, 2.0, 0.0),
            (55.0, ONLY_READS, 0, 150.0, 0.9),
            (98.0, "cut off", 0, 90.0, 0.0),
            (99.0, "timers change", 1, 1.0, FAST),
        ),
        replace(SCENE, profile="fast"),
        seeds=4,
    ),
}
"""What is wrong -> how, and what shows it."""
