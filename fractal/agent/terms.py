"""By which terms an app's present epoch is held: how long its owner counts on a proof, and until when its taker waits.

Both must come out safe for each other on devices that have read different things: an owner counts on the shorter of what may be meant,
a taker waits for the longer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fractal.agent.jobs.failover import wait_end
from fractal.core.lease import paced
from fractal.core.model import Timers

if TYPE_CHECKING:
    from fractal.agent.app_job import AppJob


class Terms:
    """Belongs to one app's job."""

    def __init__(self, job: AppJob) -> None:
        self._job = job
        self._wait: tuple[int, float, float] | None = None
        """Epoch whose wait goes on, and when it was known: that it is created, and that it is announced."""
        self._shorter: tuple[Timers, int, Timers] | None = None
        """The group's timers, the proof that the epoch object states, and what `timers` made of them last."""

    @property
    def timers(self) -> Timers:
        """The group's, or shorter ones: takers wait by what the epoch object says, so an owner never counts on more."""
        timers, proof = self._job.group.state.timers, self.stated
        if not 0 < proof < timers.proof:
            return timers
        if self._shorter is None or self._shorter[:2] != (timers, proof):
            self._shorter = (timers, proof, paced(timers, proof))
        return self._shorter[2]

    @property
    def stated(self) -> int:
        """Milliseconds that the present epoch's object allows; by the notes where no listing shows it. 0: not known."""
        app, facts = self._job.app, self._job.facts.now
        mine = self._job.group.stored(app).get(app.epoch)
        if mine is not None:
            return mine.proof_ms
        return facts.proof if facts.stated == app.epoch else 0

    def begin_wait(self, epoch: int, acknowledged: float, read_back: float) -> None:
        """The epoch was created here: when that was acknowledged, and when its announcement was read back."""
        self._wait = (epoch, acknowledged, read_back)

    def wait_over(self, now: float) -> float | None:
        """When the wait of the present epoch ends, by all that is known now; None while none goes on."""
        job = self._job
        epoch = job.app.epoch
        if not job.owns or not epoch or job.facts.now.waited == epoch:
            return None
        if self._wait is None or self._wait[0] != epoch:
            since = self._adopted(now)
            self._wait = None if since is None else (epoch, since, since)
        # Anew each time: a later listing may show that it is longer.
        return None if self._wait is None else wait_end(job.group, job.id, *self._wait)

    def _adopted(self, now: float) -> float | None:
        """From when the wait counts of an epoch that this agent did not create, or has forgotten: in full, from now.

        None before the app's store was listed: how long the proof of the owner before may be, and by how much listings lag, is
        known only from there.
        """
        store = self._job.group.stores.get(self._job.app.store)
        return None if store is None or store.sent is None else now
