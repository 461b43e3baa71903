"""Counting what the agents do, so that a report can tell which transitions of a lease no seed ever reached."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fractal.agent.app_job as app_job
import fractal.agent.jobs.failover as failover
from fractal.agent.journal import Journal
from fractal.core.entries import Entry, Released
from fractal.core.lease import Right, Why
from fractal.core.plan import Step

ENTRIES = (
    "Challenged", "Answered", "Took", "Found", "Serving", "released, clean", "released, not clean", "released, unhealthy",
)  # fmt: skip
RIGHTS = ("proved", "stands in the store", "was released", "is not over", "owns it", "neither log nor store")
TRANSITIONS = (
    *(f"entry: {name}" for name in ENTRIES),
    *(f"take: {why.value}" for why in Why if why is not Why.BURNT),
    *(f"right: {reason}" for reason in RIGHTS),
    *(f"wait: {kind}" for kind in ("in full", "clean")),
    *(
        f"step: {step.value}"
        for step in Step
        if step not in (Step.IDLE, Step.CLEAN_UP, Step.UPDATE, Step.STOP, Step.REST, Step.LET_GO)
    ),
    "guard: froze",
    "guard: thawed",
)
"""What every long run must reach. A burnt epoch, or one whose base is garbage, takes a hostile member, which no seed has, and that an app
gets healthy nowhere takes more than a seed's time: they have tests of their own."""


@contextmanager
def counting(counts: Counter[str]) -> Iterator[None]:
    """Count meanwhile."""
    job: Any = app_job
    jobs: Any = failover
    journal: Any = Journal
    kinds: Any = app_job.AppJob
    append, right, create, attempt = Journal.append, job.right_to_run, jobs._create, kinds._attempt
    reasons: dict[str, str] = {}
    wait_until = jobs.wait_until

    async def appended(self: Journal, entry: Entry, **options: Any) -> int:
        position: int = await append(self, entry, **options)
        counts[f"entry: {_name(entry)}"] += 1
        return position

    def judged(*given: Any, **facts: Any) -> Right:
        found: Right = right(*given, **facts)
        reason = found.reason
        kind = reasons.get(reason)
        if kind is None:
            kind = reasons[reason] = f"right: {next((r for r in RIGHTS if r in reason), reason)}"
        counts[kind] += 1
        return found

    async def created(group: Any, app: Any, take: Any) -> int:
        epoch: int = await create(group, app, take)
        if epoch:
            counts[f"take: {take.why.value}"] += 1
        return epoch

    def waited(**facts: Any) -> float:
        counts[f"wait: {'clean' if facts['clean'] else 'in full'}"] += 1
        end: float = wait_until(**facts)
        return end

    async def attempted(self: Any, step: Step) -> None:
        counts[f"step: {step.value}"] += 1
        await attempt(self, step)

    journal.append, job.right_to_run, jobs._create, kinds._attempt = appended, judged, created, attempted
    jobs.wait_until = waited
    try:
        yield
    finally:
        journal.append, job.right_to_run, jobs._create, kinds._attempt = append, right, create, attempt
        jobs.wait_until = wait_until


def _name(entry: Entry) -> str:
    if not isinstance(entry, Released):
        return type(entry).__name__
    if entry.unhealthy:
        return "released, unhealthy"
    return "released, clean" if entry.clean else "released, not clean"
