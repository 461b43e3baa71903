"""Putting back what an app's store lost and a mirror has, or the other way round. The app's owner does, a little at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fractal.api.errors import InvalidInput
from fractal.archive.archive import Fault, Mended

if TYPE_CHECKING:
    from fractal.agent.app_job import AppJob

MOST = 8
"""Objects that upkeep puts back at a time, of at most 64 MiB each: snapshots come first."""


@dataclass(frozen=True, slots=True)
class Damage:
    """What one store lacks."""

    store: str
    """Its id."""
    faults: tuple[Fault, ...]


class Mending:
    """Belongs to one app's job."""

    def __init__(self, job: AppJob) -> None:
        self._job = job
        self._waiting: dict[str, Fault] = {}
        """By key: of the app's own store, to be put back by upkeep."""
        self._done = 0
        self._failed = 0

    # --- by people -----------------------------------------------------------------------------------------------

    async def look(self, *, deep: bool) -> list[Damage]:
        """What each store lacks of what counts; of mirrors only with `deep`, as filling them finds what is missing there.

        Raises InvalidInput for an app without mirrors, BackendError.
        """
        job = self._job
        if not job.app.mirrors:
            raise InvalidInput(
                f"{job.app.name} has no mirror that could have what its store lost: "
                f"`homeserver app policy {job.app.name!r} --mirror STORE` makes one"
            )
        await job.group.list_epochs(job.app.store)
        found = [Damage(job.app.store, tuple(await (await job.data.archive()).faults(deep=deep)))]
        found += [
            Damage(store, tuple(await (await job.mirrors.open(store)).faults()))
            for store in (job.app.mirrors if deep else ())
        ]
        return [damage for damage in found if damage.faults]

    async def mend(self, damage: Damage) -> list[Mended]:
        """Put it back. What could not be is in the result, with the reason. Raises BackendError."""
        job = self._job
        proof = job.care.thinning.owns_highest
        if damage.store == job.app.store:
            done = await (await job.data.archive()).mend(damage.faults, proof)
        else:
            done = await (await job.mirrors.open(damage.store)).mend(damage.faults, proof)
        self._tell(damage.store, done)
        return done

    # --- by upkeep -----------------------------------------------------------------------------------------------

    def notice(self, faults: Sequence[Fault]) -> None:
        """The app's own store was found to lack these."""
        if self._job.app.mirrors:
            self._waiting.update({fault.key: fault for fault in faults})

    async def due(self) -> bool:
        """Whether something waits to be put back."""
        self.notice((await self._job.data.archive()).noticed())
        return bool(self._waiting)

    async def round(self) -> bool:
        """Put a few things back; whether all that waited is whole now. Raises BackendError."""
        keys = list(self._waiting)[:MOST]
        batch = [self._waiting.pop(key) for key in keys]
        done = await self.mend(Damage(self._job.app.store, tuple(batch)))
        self._done += sum(1 for mended in done if not mended.problem)
        self._failed += sum(1 for mended in done if mended.problem)
        if self._waiting:
            return False
        whole, self._done, self._failed = self._done > 0 and not self._failed, 0, 0
        return whole

    def _tell(self, store: str, done: Sequence[Mended]) -> None:
        job, name = self._job, self._job.group.state.stores[store].name
        for mended in done:
            if mended.problem:
                job.logger.warning("%s: store %s: not put back: %s", job.app.name, name, mended.problem)
            elif mended.source:
                job.logger.warning(
                    "%s: store %s: %s was put back out of store %s",
                    job.app.name,
                    name,
                    mended.key,
                    mended.source,
                )
