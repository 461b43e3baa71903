"""More broken agents: such as go by other terms of a lease than whoever takes over from them, and what shows it.

Terms change while devices are cut off: the group's timers, and whether an app's policy keeps it where its device is cut off.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any

import pytest

import fractal.agent.app_job as app_job
import fractal.agent.jobs.failover as failover
import fractal.agent.jobs.guarding as guarding
import fractal.agent.terms as terms
import fractal.core.lease as lease
from fractal.agent.app_job import AppJob
from fractal.agent.group import GroupAgent
from fractal.agent.terms import Terms
from fractal.core.lease import Right, right_to_run
from fractal.core.model import App, GroupState
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


def kept_at_once(patch: pytest.MonkeyPatch) -> None:
    def hasty(app: App, me: str, **facts: Any) -> Right:
        return right_to_run(replace(app, unproven=1), me, **facts)

    patch.setattr(app_job, "right_to_run", hasty)


def a_policy_counts_as_read(patch: pytest.MonkeyPatch) -> None:
    at_risk = lease._at_risk
    patch.setattr(lease, "_at_risk", lambda app: at_risk(replace(app, unproven=0)))


def an_unfit_owner_is_replaced(patch: pytest.MonkeyPatch) -> None:
    vacancy = lease._vacancy

    def hasty(state: GroupState, app: App) -> Any:
        return vacancy(state, replace(app, unproven=0))

    patch.setattr(lease, "_vacancy", hasty)


def the_guard_is_not_bound(patch: pytest.MonkeyPatch) -> None:
    async def said(_: GroupAgent, job: AppJob) -> None:
        job.bound = job.app.unproven

    patch.setattr(guarding, "_bind", said)


AUTOMATIC, KEEP = 0.0, 0.5
"""Values of "policy changes"."""
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
    "kept as soon as the policy says so": Variant(
        "I1",
        kept_at_once,
        # The policy comes while somebody creates the next epoch, slowly. The owner reads the one and not the other.
        course(
            (45.0, ONLY_READS, 0, 150.0, 0.9),
            (46.0, "slow store", 1, 60.0, 0.9),
            (47.0, "policy changes at a take", 2, 90.0, KEEP),
        ),
        SCENE,
        seeds=4,
    ),
    "a policy counts as read once it is said": Variant(
        "I1",
        a_policy_counts_as_read,
        course(
            (30.0, "policy changes", 0, 1.0, KEEP),
            (60.0, "cut off", 0, 100.0, 0.0),
            (65.0, "policy changes", 1, 1.0, AUTOMATIC),
        ),
        SCENE,
        seeds=4,
    ),
    "an unfit owner is replaced though it needs no proof": Variant(
        "I1",
        an_unfit_owner_is_replaced,
        course(
            (30.0, "policy changes", 0, 1.0, KEEP),
            (60.0, "cut off", 0, 100.0, 0.0),
            (65.0, "host no more", 0, 1.0, 0.0),
        ),
        SCENE,
        seeds=4,
    ),
    "the guard keeps what it was granted by policy": Variant(
        "I1",
        the_guard_is_not_bound,
        # All have read everything long before the owner is cut off.
        course(
            (30.0, "policy changes", 0, 1.0, KEEP),
            (45.0, "policy changes", 1, 1.0, AUTOMATIC),
            (60.0, "cut off", 0, 100.0, 0.0),
        ),
        SCENE,
        seeds=4,
    ),
}
"""What is wrong -> how, and what shows it."""
