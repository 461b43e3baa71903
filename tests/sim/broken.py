"""Deliberately broken variants of the real agent, each as small as a real mistake, by name. Nothing shipped knows of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any

import pytest

import fractal.agent.app_job as app_job
import fractal.agent.jobs.failover as failover
from fractal.agent.app_data import AppData
from fractal.agent.group import GroupAgent, OpenStore
from fractal.agent.journal import Journal
from fractal.agent.saver import Saver
from fractal.archive.records import Record
from fractal.core.lease import Proofs, Right, right_to_run
from fractal.core.model import App, Point
from fractal.sim.faults import Fault
from fractal.sim.processes import SimGuard

Patch = Callable[[pytest.MonkeyPatch], None]


def no_wait_after_the_put(patch: pytest.MonkeyPatch) -> None:
    def wait_until(*, acknowledged: float, read_back: float, **_: object) -> float:
        return max(acknowledged, read_back)

    patch.setattr(failover, "wait_until", wait_until)


def proof_counted_from_arrival(patch: pytest.MonkeyPatch) -> None:
    read, list_epochs = Journal._read, GroupAgent.list_epochs

    async def late_read(self: Journal, wait: float) -> bool:
        before = self.proof_sent
        changed = await read(self, wait)
        if self.proof_sent != before:
            self.proof_sent = self._clock.boottime()
        return changed

    async def late_list(self: GroupAgent, store: str) -> OpenStore:
        opened = await list_epochs(self, store)
        opened.sent = self.agent.clock.boottime()
        return opened

    patch.setattr(Journal, "_read", late_read)
    patch.setattr(GroupAgent, "list_epochs", late_list)


def no_guard(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SimGuard, "_look", lambda *_: None)


def proof_never_expires(patch: pytest.MonkeyPatch) -> None:
    def generous(app: App, me: str, **facts: Any) -> Right:
        right = right_to_run(app, me, **facts)
        return right if right.deadline is None else replace(right, deadline=float("inf"))

    patch.setattr(app_job, "right_to_run", generous)


def wait_forgotten_by_a_restart(patch: pytest.MonkeyPatch) -> None:
    def none_left(_: GroupAgent, __: str, ___: int, ____: float, read_back: float) -> float:
        return read_back

    patch.setattr(app_job, "wait_end", none_left)


def base_chosen_before_the_put(patch: pytest.MonkeyPatch) -> None:
    look = AppData.look

    async def remembered(self: AppData) -> Point:
        if self._app().owner == self._job.group.me and self.newest is not None:
            return self.newest
        return await look(self)

    patch.setattr(AppData, "look", remembered)


def signals_treated_as_proof(patch: pytest.MonkeyPatch) -> None:
    proofs = GroupAgent.proofs

    def trusting(self: GroupAgent, app: App) -> Proofs:
        found = proofs(self, app)
        heard = max((b.heard for b in self.beats.values()), default=0.0)
        return replace(found, log=max(found.log or 0.0, heard))

    patch.setattr(GroupAgent, "proofs", trusting)


def unannounced_epochs_not_found(patch: pytest.MonkeyPatch) -> None:
    async def nothing(*_: object) -> None:
        return

    patch.setattr(failover, "_announce_found", nothing)


def committed_without_a_look(patch: pytest.MonkeyPatch) -> None:
    note = Saver._note

    async def hopeful(self: Saver, queued: Any, record: Record, _: int) -> None:
        await note(self, queued, record, 0)

    patch.setattr(Saver, "_note", hopeful)


def longest_proof_not_looked_up(patch: pytest.MonkeyPatch) -> None:
    def wait_end(group: GroupAgent, _: str, __: int, acknowledged: float, read_back: float) -> float:
        return max(acknowledged, read_back) + group.state.timers.margin / 1000

    patch.setattr(failover, "wait_end", wait_end)
    patch.setattr(app_job, "wait_end", wait_end)


UNHEARD, HEARS = "unheard, then cut off", "cut off but hears"


def attack(seed: int, kind: str = UNHEARD) -> Sequence[Fault]:
    """Nothing but one kind of fault; the first is where every second of a lease counts."""
    random = Random(seed)
    return [
        Fault(
            number=n,
            at=45.0 + 80.0 * n,
            kind=kind,
            devices=(n % 3,),
            seconds=25.0 if kind == UNHEARD else 60.0,
            value=random.random(),
        )
        for n in range(4)
    ]


VARIANTS: Mapping[str, tuple[str, Patch, str]] = {
    "no wait after the put": ("I1", no_wait_after_the_put, UNHEARD),
    "only the margin is waited": ("I1", longest_proof_not_looked_up, UNHEARD),
    "proof counted from arrival": ("I1", proof_counted_from_arrival, UNHEARD),
    "the wait is forgotten by a restart": ("I1", wait_forgotten_by_a_restart, UNHEARD),
    "no guard": ("I1", no_guard, UNHEARD),
    "a proof never expires": ("I1", proof_never_expires, UNHEARD),
    "signals treated as proof": ("I1", signals_treated_as_proof, HEARS),
    "base chosen before the put": ("I3", base_chosen_before_the_put, ""),
    "committed without a look": ("I3", committed_without_a_look, ""),
    "unannounced epochs not found": ("I5", unannounced_epochs_not_found, ""),
}
"""Name -> (invariant that it breaks, how, the only kind of fault if others seldom show it)."""
