"""Deliberately broken variants of the real agent, each as small as a real mistake, by name. Nothing shipped knows of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import pytest

import fractal.agent.app_job as app_job
import fractal.agent.handover as handover
import fractal.agent.jobs.failover as failover
import fractal.agent.terms as terms
import fractal.core.fold_lease as fold_lease
import fractal.core.lease as lease
import fractal.core.log as core_log
import fractal.crypto.seal as seal
import fractal.crypto.stream as stream
from fractal.agent.app_data import AppData
from fractal.agent.group import GroupAgent, OpenStore
from fractal.agent.journal import Journal
from fractal.agent.saver import Saver
from fractal.agent.terms import Terms
from fractal.archive.orphans import Collector
from fractal.core.entries import Answered, Released
from fractal.core.lease import Proofs, Right, right_to_run
from fractal.core.model import App, GroupState, Point
from fractal.sim.faults import Fault
from fractal.sim.machine import DeviceClock
from fractal.sim.processes import SimGuard
from fractal.sim.scene import Scene

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
    patch.setattr(Terms, "_adopted", lambda _, now: now - 1e6)


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
        heard = max(self.heard.values(), default=0.0)
        return replace(found, log=max(found.log or 0.0, heard))

    patch.setattr(GroupAgent, "proofs", trusting)


def unannounced_epochs_not_found(patch: pytest.MonkeyPatch) -> None:
    async def nothing(*_: object) -> None:
        return

    patch.setattr(failover, "_announce_found", nothing)


def committed_without_a_look(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Saver, "_replaced", lambda *_: False)  # as if no epoch came after the snapshot's


def longest_proof_not_looked_up(patch: pytest.MonkeyPatch) -> None:
    def wait_end(group: GroupAgent, _: str, __: int, acknowledged: float, read_back: float) -> float:
        return max(acknowledged, read_back) + group.state.timers.margin / 1000

    patch.setattr(terms, "wait_end", wait_end)


def monotonic_on_a_sleeping_machine(patch: pytest.MonkeyPatch) -> None:
    def monotonic(self: DeviceClock) -> float:
        return boottime(self) - self.slept

    boottime = DeviceClock.boottime
    patch.setattr(DeviceClock, "boottime", monotonic)


def an_answer_bears_on_the_right_to_run(patch: pytest.MonkeyPatch) -> None:
    proofs = GroupAgent.proofs

    def answered(self: GroupAgent, app: App) -> Proofs:
        found = proofs(self, app)
        return replace(found, log=self.agent.clock.boottime()) if self.me in self.state.answers else found

    patch.setattr(GroupAgent, "proofs", answered)


def took_announced_after_the_wait(patch: pytest.MonkeyPatch) -> None:
    announce = failover._announce

    async def late(group: GroupAgent, taken: dict[str, int]) -> None:
        async def say() -> None:
            timers = group.state.timers
            await group.agent.clock.sleep((timers.proof + timers.margin) / 1000)
            await announce(group, taken)

        group.later = asyncio.create_task(say())  # type: ignore[attr-defined]  # held, or it would be collected

    patch.setattr(failover, "_announce", late)
    patch.setattr(failover, "FOUND_AFTER", 1e9)
    patch.setattr(Terms, "_adopted", lambda _, now: now - 1e6)


def thaw_without_looking(patch: pytest.MonkeyPatch) -> None:
    def hopeful(app: App, me: str, **facts: Any) -> Right:
        right = right_to_run(app, me, **facts)
        return Right(float("inf"), "hope") if right.reason.startswith("neither log") else right

    patch.setattr(app_job, "right_to_run", hopeful)


def every_release_is_clean(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(handover, "Released", lambda **said: Released(**{**said, "clean": True}))
    patch.setattr(failover, "clean_succession", lambda app, epoch, stored: True)


def a_release_inside_the_wait_counted_as_clean(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(handover, "Released", lambda **said: Released(**{**said, "clean": True}))


def found_names_whoever_says_it(patch: pytest.MonkeyPatch) -> None:
    found = failover._found

    async def mine(group: GroupAgent, app: App, epoch: int, _: str) -> None:
        await found(group, app, epoch, group.me)

    patch.setattr(failover, "_found", mine)


def a_fold_that_knows_who_reads(patch: pytest.MonkeyPatch) -> None:
    def answered(turn: Any, entry: Answered) -> Any:
        mine = turn.certifier._keys.id == turn.device.id
        return turn.state if mine else fold_lease.answered(turn, entry)

    patch.setitem(core_log._HANDLERS, Answered, answered)


def an_epoch_that_falls(patch: pytest.MonkeyPatch) -> None:
    def owned(app: App, epoch: int, owner: str) -> App:
        return replace(app, epoch=min(epoch, 2), owner=owner, release=None)

    patch.setattr(fold_lease, "_owned", owned)


def pruning_by_what_was_known_before(patch: pytest.MonkeyPatch) -> None:
    needed = AppData._needed

    def old(self: AppData, keep: set[str]) -> set[str]:
        before = self._job.facts.now
        self._job.facts.now = replace(before, queue=())
        try:
            return needed(self, keep)
        finally:
            self._job.facts.now = before

    patch.setattr(AppData, "_needed", old)


def collection_without_its_day(patch: pytest.MonkeyPatch) -> None:
    collect = Collector.collect

    async def at_once(self: Collector, proof: Any, *, grace: float = 0.0) -> Any:
        return await collect(self, proof, grace=0.0 * grace)

    patch.setattr(Collector, "collect", at_once)


def age_counted_from_the_last_try(patch: pytest.MonkeyPatch) -> None:
    def tried(self: Saver) -> int:
        return int(1000 * (self._job.group.agent.clock.boottime() - (self._ticked or 0.0)))

    patch.setattr(Saver, "would_lose", tried)


def half_of_the_snapshots(patch: pytest.MonkeyPatch) -> None:
    due = Saver.due

    def late(self: Saver) -> float:
        now: float = due.fget(self)  # type: ignore[attr-defined]  # a property
        return now + self._job.app.policy.interval / 1000 if now else now

    patch.setattr(Saver, "due", property(late))


def a_release_that_is_not_final(patch: pytest.MonkeyPatch) -> None:
    release = handover.Handover.release

    async def impatient(self: handover.Handover, epoch: int = 0, *, unhealthy: bool = False) -> None:
        job = self._job
        try:
            async with asyncio.timeout(3.0):
                await release(self, epoch, unhealthy=unhealthy)
        except TimeoutError:
            # Nobody seems to have heard of it: go on here, and try again later, as after other handovers that failed.
            job.facts.change(released=0)
            self._stay_until = job.group.agent.clock.boottime() + handover.STAY

    patch.setattr(handover.Handover, "release", impatient)


def taken_counts_as_stored(patch: pytest.MonkeyPatch) -> None:
    tick = Saver._tick

    async def taken(self: Saver, now: float) -> None:
        await tick(self, now)
        self._safe_at = now

    patch.setattr(Saver, "_tick", taken)


def who_answered_once_is_believed_for_ever(patch: pytest.MonkeyPatch) -> None:
    def trusting(state: GroupState, *given: Any) -> tuple[str, ...]:
        return tuple(d for d in lease.to_challenge(state, *given) if d not in state.answers)

    patch.setattr(failover, "to_challenge", trusting)


def nothing_is_pruned(patch: pytest.MonkeyPatch) -> None:
    async def keep_all(*_: Any, **__: Any) -> None:
        return

    patch.setattr(AppData, "prune", keep_all)


def orphans_are_not_looked_for(patch: pytest.MonkeyPatch) -> None:
    async def none(_: Collector) -> list[Any]:
        return []

    patch.setattr(Collector, "look", none)


def frames_are_not_sealed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(stream.ObjectSeal, "_seal", lambda _, __, ___, body: [b"", body])


def entries_are_not_sealed(patch: pytest.MonkeyPatch) -> None:
    def plain(value: bytes, _: bytes, __: bytes, entropy: Any) -> bytes:
        return bytes(entropy.bytes(seal.NONCE_SIZE)) + value + bytes(seal.TAG_SIZE)

    patch.setattr(seal, "seal_group", plain)
    patch.setattr(seal, "open_group", lambda sealed, _, __: sealed[seal.NONCE_SIZE : -seal.TAG_SIZE])


def nobody_answers(patch: pytest.MonkeyPatch) -> None:
    async def deaf(group: GroupAgent) -> None:
        await group.agent.clock.sleep(1e9)

    patch.setattr(failover, "answer", deaf)


def silence_alone_is_enough(patch: pytest.MonkeyPatch) -> None:
    def at_once(state: Any, app: App, me: str, seen: Any) -> Any:
        take = silent(state, app, me, seen)
        return None if take is None else replace(take, at=0.0)

    silent = lease._silent
    patch.setattr(lease, "_silent", at_once)


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


def course(*steps: tuple[float, str, float]) -> Callable[[int], Sequence[Fault]]:
    """Faults of the first device, which owns the app in the beginning: (when, what, for how long)."""

    def drawn(seed: int) -> Sequence[Fault]:
        random = Random(seed)
        return [
            Fault(
                number=n,
                at=at + random.uniform(0.0, 3.0),
                kind=kind,
                devices=(0,),
                seconds=seconds,
                value=random.random() * 0.69,
            )
            for n, (at, kind, seconds) in enumerate(steps)
        ]

    return drawn


def only(kind: str) -> Callable[[int], Sequence[Fault]]:
    """One kind of fault, again and again."""
    return lambda seed: attack(seed, kind)


def released_and_cut_off(seed: int) -> Sequence[Fault]:
    """The first device hands its app to another, and is cut off at the instant when its release got into the log."""
    random = Random(seed)
    at = 50.0 + random.uniform(0.0, 5.0)
    # What decides details: 1.1 / 997 names the first app and the second device.
    return [
        Fault(number=0, at=at, kind="cut off after an append", devices=(0,), seconds=60.0, value=0.5),
        Fault(number=1, at=at + 0.5, kind="move", devices=(2,), seconds=1.0, value=1.1 / 997),
    ]


def released_inside_the_wait(seed: int) -> Sequence[Fault]:
    """The worst that can happen to a lease, and whoever takes the app then gives it up at once."""
    faults = attack(seed)
    late = Fault(
        number=len(faults), at=40.0, kind="gives up in its wait", devices=(0,), seconds=280.0, value=0.0
    )
    return [*faults, late]


SHORT = Scene(faults_for=200.0, rest=80.0)
LONG = Scene(faults_for=330.0, rest=100.0)


@dataclass(frozen=True, slots=True)
class Variant:
    """A broken agent and what shows it."""

    invariant: str
    patch: Patch
    faults: Callable[[int], Sequence[Fault]] = attack
    scene: Scene = LONG
    seeds: int = 12
    """Within so many it is found."""


VARIANTS: Mapping[str, Variant] = {
    "no wait after the put": Variant("I1", no_wait_after_the_put),
    "only the margin is waited": Variant("I1", longest_proof_not_looked_up),
    "proof counted from arrival": Variant("I1", proof_counted_from_arrival, seeds=100),
    "the wait is forgotten by a restart": Variant("I1", wait_forgotten_by_a_restart, seeds=30),
    "no guard": Variant("I1", no_guard),
    "a proof never expires": Variant("I1", proof_never_expires),
    "signals treated as proof": Variant("I1", signals_treated_as_proof, only(HEARS)),
    "CLOCK_MONOTONIC on machines that sleep": Variant(
        "I1",
        monotonic_on_a_sleeping_machine,
        course((45.0, "machine sleeps", 60.0), (52.0, "cut off", 110.0)),
        SHORT,
    ),
    "an answer bears on the right to run": Variant(
        "I1",
        an_answer_bears_on_the_right_to_run,
        course((40.0, "muted", 35.0), (80.0, "cut off", 100.0)),
        SHORT,
    ),
    "took announced only after the wait": Variant(
        "I1",
        took_announced_after_the_wait,
        course((45.0, "reads the log, nothing else", 90.0), (74.0, "cut off", 60.0)),
        SHORT,
    ),
    "thaw without looking": Variant(
        "I1", thaw_without_looking, course((45.0, "cut off", 110.0), (90.0, "agent killed", 2.0)), SHORT
    ),
    "every release is clean": Variant("I1", every_release_is_clean),
    "a release inside the wait counted as clean": Variant(
        "I1", a_release_inside_the_wait_counted_as_clean, released_inside_the_wait
    ),
    "a release that is not final": Variant(
        "I1", a_release_that_is_not_final, released_and_cut_off, replace(SHORT, size=3)
    ),
    "found names whoever says it": Variant("I2", found_names_whoever_says_it),
    "a fold that knows who reads": Variant(
        "I2", a_fold_that_knows_who_reads, course((40.0, "muted", 60.0)), SHORT
    ),
    "an epoch that falls": Variant("I2", an_epoch_that_falls),
    "base chosen before the put": Variant("I3", base_chosen_before_the_put),
    "committed without a look": Variant(
        "I3",
        committed_without_a_look,
        course((40.0, "slow store", 200.0), *((45.0 + 9 * n, "agent frozen", 45.0) for n in range(2))),
        SHORT,
        seeds=30,
    ),
    "pruning by what was known before": Variant("I3", pruning_by_what_was_known_before, only("store down")),
    "collection without its day": Variant("I3", collection_without_its_day, only("slow store"), seeds=30),
    "age counted from the last try": Variant("I4", age_counted_from_the_last_try, only("store down")),
    "taken counts as stored": Variant("I4", taken_counts_as_stored, only("store down")),
    "half of the snapshots are not taken": Variant(
        "I4", half_of_the_snapshots, course((70.0, "owner dies", 130.0), (220.0, "owner dies", 130.0)), LONG
    ),
    "unannounced epochs not found": Variant("I5", unannounced_epochs_not_found),
    "who answered once is believed for ever": Variant(
        "I5", who_answered_once_is_believed_for_ever, course((45.0, "muted", 60.0)), replace(SHORT, mortal=0)
    ),
    "nothing is pruned": Variant("I6", nothing_is_pruned, course((45.0, "muted", 1.0)), Scene()),
    "orphans are not looked for": Variant("I6", orphans_are_not_looked_for, only("killed at a moment")),
    "frames are not sealed": Variant("I7", frames_are_not_sealed, course((45.0, "muted", 1.0)), SHORT),
    "entries are not sealed": Variant("I7", entries_are_not_sealed, course((45.0, "muted", 1.0)), SHORT),
    "nobody answers": Variant(
        "I8", nobody_answers, course((45.0, "muted", 60.0)), replace(SHORT, kind="gentle")
    ),
    "silence alone is enough": Variant(
        "I8", silence_alone_is_enough, course((45.0, "muted", 60.0)), replace(SHORT, kind="gentle")
    ),
}
"""What is wrong -> how, and what shows it."""
