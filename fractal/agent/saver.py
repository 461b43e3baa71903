"""Taking an app's snapshots on time and storing them; knowing how much would be lost now."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from fractal.agent.hooks import SnapshotHooks
from fractal.agent.local import Queued
from fractal.api.app import run_key
from fractal.api.errors import BackendError, FractalError
from fractal.archive.backup import Unreadable
from fractal.core.keeping import outrun, to_store
from fractal.core.lease import renews, seconds
from fractal.core.model import Point

if TYPE_CHECKING:
    from fractal.agent.app_job import AppJob
    from fractal.archive.records import Record

RETRY = 10.0
"""Seconds after which a snapshot that failed is taken again, if the interval is not shorter."""
SHORTEST = 0.02
LOOK = 15.0
"""Seconds between two looks for something to store when nothing wakes the job: whatever queues a snapshot does."""
LONGEST_QUEUE = 12
"""Snapshots that wait on the device while the store is away; beyond that every second one is given up."""


class Saver:
    """`tick` is called by the app's steps and is short; `run` stores what ticks queued, in order, beside them."""

    def __init__(self, job: AppJob) -> None:
        self._job = job
        self.hooks = SnapshotHooks(job)
        self._ticked: float | None = None
        self.problem = ""
        self.rounds = 0
        self.last_round: int | None = None
        self._settled = False
        self.caught_up = False
        """Whether a snapshot was taken, or found needless, since the root was replaced or somebody asked for one."""
        self._taken: dict[str, float] = {}
        self._safe_at: float | None = None
        self._failures: dict[str, int] = {}
        """By name of a queued snapshot: how often it could not be read."""

    @property
    def due(self) -> float:
        """When the next snapshot is due, by the interval as it is now."""
        return 0.0 if self._ticked is None else self._ticked + seconds(self._job.app.policy.interval)

    @property
    def settled(self) -> bool:
        """Whether the root was equal to the newest snapshot at the last look, and nobody asked for another."""
        return self._settled and self._ticked is not None

    def reset(self) -> None:
        """The root was replaced: what was known of it is void."""
        self._ticked = None
        self._settled = self.caught_up = False
        self.rounds, self.last_round = 0, None

    def hurry(self) -> None:
        """Take the next snapshot as soon as possible, also of an app that is stopped."""
        self._ticked = None
        self.caught_up = False

    def safe(self, since: float) -> bool:
        """Whether all that the app wrote before `since` (boottime) is committed to the store."""
        return self._safe_at is not None and self._safe_at >= since

    # --- how much would be lost ------------------------------------------------------------------------------------

    def would_lose(self) -> int:
        """Milliseconds of data that would be lost if the device died now; never too small, -1 when not known.

        It is the age of the last snapshot that was committed or proved that nothing changed. After a restart the
        snapshot's wall-clock label stands in until the first tick.
        """
        clock, facts = self._job.group.agent.clock, self._job.facts.now
        if self._safe_at is not None:
            return int(1000 * (clock.boottime() - self._safe_at))
        age = clock.wall_ms() - facts.committed_ms if facts.committed_ms else -1
        # A label in the future: one of the two clocks was wrong, so nothing is known.
        return max(-1, age)

    # --- taking ----------------------------------------------------------------------------------------------------

    async def tick(self) -> None:
        """Take a snapshot, unless nothing changed since the last one. A late tick skips, it never piles up."""
        job = self._job
        now = job.group.agent.clock.boottime()
        self._ticked = now
        try:
            await self._tick(now)
        except BaseException:
            # Not a whole interval without a snapshot because one failed.
            self._ticked = min(now, now + RETRY - seconds(job.app.policy.interval))
            raise
        self.caught_up = True

    async def _tick(self, now: float) -> None:
        job = self._job
        if self._target_moving():
            self.rounds += 1
        # Hooks first: what they have the app write is what there is to be saved.
        async with self.hooks.around():
            taken = await self._take(now)
        if self.hooks.held:
            # What holds the app up is let go as soon as can be.
            self._ticked = min(now, now + RETRY - seconds(job.app.policy.interval))
        if not taken:
            return
        await self._thin()
        job.group.pulse.beat()

    async def _take(self, now: float) -> bool:
        """A snapshot of what there is now, unless nothing changed; whether there is one more."""
        job = self._job
        if await self._unchanged():
            self._settled = True
            if ticks := job.facts.now.ticks:
                # Once that one is stored, so is all that was written until now.
                self._taken[ticks[-1].name] = now
            else:
                self._safe_at = now
            if self._target_moving() and self.last_round is None:
                self.last_round = 0
            return False
        counter = job.facts.now.counter + 1
        name = f"t-{job.app.epoch}-{counter}"
        job.facts.change(counter=counter)
        with job.data.holding(
            [name]
        ):  # it exists before it is queued, and an earlier one is noted beside this
            await self._snapshot(name)
            facts = job.facts.now
            wall_ms = job.group.agent.clock.wall_ms()
            queued = Queued(name=name, epoch=facts.root, wall_ms=wall_ms, parent=facts.committed)
            self._taken[name] = now
            job.facts.put(replace(facts, queue=(*facts.queue, queued)))
        self._settled = False
        return True

    async def _unchanged(self) -> bool:
        facts, snapshotter = self._job.facts.now, self._job.group.agent.snapshotter
        if facts.ticks:
            newest = facts.ticks[-1].name
        elif facts.committed is not None:
            newest = facts.name_of(facts.committed)
        else:
            return False
        return await snapshotter.unchanged(self._job.data.volume, newest)

    async def _snapshot(self, name: str) -> None:
        """A consistent snapshot: where the file system has no atomic one, the app is paused meanwhile."""
        job = self._job
        agent = job.group.agent
        run = job.health()
        pause = (
            run is not None
            and run.running
            and (not agent.instant_snapshots or job.spec.consistency == "pause")
        )
        key = run_key(job.group.id, job.id, job.app.epoch)
        try:
            if pause:
                await agent.runtime.pause(key)
            await agent.snapshotter.snapshot(job.data.volume, name)
        finally:
            if pause:
                await asyncio.shield(agent.runtime.unpause(key))

    async def _thin(self) -> None:
        """Keep the queue bounded while the store is away: give up every second snapshot, and say so."""
        facts, snapshotter = self._job.facts.now, self._job.group.agent.snapshotter
        if len(facts.queue) <= LONGEST_QUEUE:
            return
        ticks = [q for q in facts.queue[1:-1] if not q.branch]
        given_up = {q.name for q in ticks[::2]}
        self._job.logger.warning(
            "%s: %d snapshots wait for the store; every second one is given up",
            self._job.app.name,
            len(facts.queue),
        )
        self._job.facts.put(replace(facts, queue=tuple(q for q in facts.queue if q.name not in given_up)))
        for name in given_up:
            self._taken.pop(name, None)
            await snapshotter.delete(self._job.data.volume, name)

    # --- storing ---------------------------------------------------------------------------------------------------

    async def drain(self, limit: float) -> None:
        """Wait until everything queued is stored, at most `limit` seconds. Raises BackendError with the reason."""
        clock = self._job.group.agent.clock
        end = clock.boottime() + limit
        while self._job.facts.now.ticks:
            if clock.boottime() > end:
                why = self.problem or "the store is slow"
                raise BackendError(
                    f"the last snapshot could not be stored within {limit:.0f} s: {why}", retryable=True
                )
            await clock.sleep(0.02)

    async def _make_room(self) -> None:
        """Delete what this owner fetched in a hurry: its app does not change, so no snapshot is stored that makes room."""
        job = self._job
        idle = self.settled and job.owns and job.facts.now.root == job.app.epoch
        if not (idle and job.data.crowded):
            return
        try:
            await job.data.make_room()
            self.problem = ""
        except FractalError as error:
            problem = f"snapshots that nothing needs are not deleted: {error}"
            if self.problem != problem:
                job.logger.warning("%s: %s", job.app.name, problem)
            self.problem = problem

    async def run(self) -> None:
        """Store what is queued, oldest first, for ever. What cannot be stored itself does not keep later ones from it."""
        pause = 0.5
        pulse = 0
        while True:
            if not self._job.facts.now.queue:
                await self._make_room()
                pulse = await self._job.group.pulse.wait(pulse, LOOK)
                continue
            if await self._store_one():
                pause = 0.5
                self.problem = ""
            else:
                await self._rest(pause)
                pause = min(15.0, pause * 2)

    async def _rest(self, pause: float) -> None:
        """Wait after a failure; what is queued meanwhile does not wait for the end of it."""
        group, clock = self._job.group, self._job.group.agent.clock
        end, pulse = clock.boottime() + pause, group.pulse.count
        known = {q.name for q in self._job.facts.now.queue}
        while clock.boottime() < end and known.issuperset(q.name for q in self._job.facts.now.queue):
            pulse = await group.pulse.wait(pulse, max(SHORTEST, end - clock.boottime()))

    async def _store_one(self) -> bool:
        """Store one snapshot; whether that was done."""
        queue = self._job.facts.now.queue
        self._failures = {q.name: self._failures[q.name] for q in queue if q.name in self._failures}
        for queued in to_store(queue, self._failures):
            try:
                await self._store(queued)
            except FractalError as error:
                if self.problem != str(error):
                    self._job.logger.warning("%s: snapshot not stored: %s", self._job.app.name, error)
                self.problem = str(error)
                if not isinstance(error, Unreadable):
                    return False
                self._failures[queued.name] = self._failures.get(queued.name, 0) + 1
            else:
                return True
        return False

    async def _store(self, queued: Queued) -> None:
        """Store one snapshot: segments, then its record, then the look that makes it committed."""
        job = self._job
        archive = await job.data.archive()
        held = {s.name for s in await job.group.agent.snapshotter.snapshots(job.data.volume)}
        facts = job.facts.now
        if queued.name not in held and queued.branch and facts.root == queued.epoch:
            raise BackendError(f"branch {queued.name} is still being put aside", retryable=True)
        if queued.name not in held:
            job.facts.put(replace(facts, queue=tuple(q for q in facts.queue if q != queued)))
            return
        # The line that it continues; for a replaced epoch that is where the line was when it was taken.
        parent = facts.committed if facts.root == queued.epoch and not queued.branch else queued.parent
        if parent is not None and facts.name_of(parent) not in held:
            parent = None
        opened = await job.group.store(job.app.store)
        if opened.sent is None:
            # Not a byte into a place that lacks our epochs, such as the mount point of a disk that is not there.
            opened = await job.group.list_epochs(job.app.store)
        write = partial(
            archive.write,
            queued.epoch,
            snapshotter=job.group.agent.snapshotter,
            volume=job.data.volume,
            name=queued.name,
            parent=parent,
            name_of=facts.name_of,
            wall_ms=queued.wall_ms,
        )
        replaced = self._replaced(queued, opened.highest(job.id))
        record = await write(replaced=replaced)
        opened = await job.group.list_epochs(job.app.store)
        if not replaced and self._replaced(queued, opened.highest(job.id)):
            # A device that was away for hours learns it only now. What it built on may be let go: then it is sent anew.
            record = await write(replaced=True)
        await self._note(queued, record, opened.highest(job.id))

    def _replaced(self, queued: Queued, highest: int) -> bool:
        """Whether its epoch is over. A store may hide the higher one that the log tells of."""
        return max(highest, self._job.app.epoch) > queued.epoch

    async def _note(self, queued: Queued, record: Record, highest: int) -> None:
        """The record stands; it is committed only if no higher epoch stood at a look that began after its put.

        Nor if the log tells of one: a store may hide it.
        """
        job = self._job
        point = Point(epoch=record.epoch, number=record.number)
        facts, done = job.facts.now, self._done_with(queued)
        left = tuple(q for q in facts.queue if q.name not in done)
        if self._replaced(queued, highest):
            job.facts.put(replace(facts.named(point, queued.name), queue=left))
            job.group.agent.tell(
                "app.branch",
                group=job.group,
                app=job.id,
                text=f"{job.app.name}: a branch of epoch {queued.epoch} is kept",
            )
            return
        noted = replace(
            facts.named(point, queued.name), queue=left, committed=point, committed_ms=queued.wall_ms
        )
        job.facts.put(noted)
        job.data.committed(record)
        job.mirrors.committed(record)
        if (taken := self._taken.pop(queued.name, None)) is not None:
            self._safe_at = taken
        self.last_round = record.stored
        await job.data.prune(keep={queued.name})
        job.group.pulse.beat()

    def _done_with(self, stored: Queued) -> set[str]:
        """Names that leave the queue as this one was stored."""
        lost = outrun(self._job.facts.now.queue, stored.name)
        for queued in lost:
            self._taken.pop(queued.name, None)
            self._job.logger.warning(
                "%s: snapshot %s cannot be read and is given up: a later one is stored",
                self._job.app.name,
                queued.name,
            )
        return {stored.name, *(q.name for q in lost)}

    def _target_moving(self) -> bool:
        app = self._job.app
        return bool(app.move_to and app.move_to != self._job.group.me) or renews(app)
