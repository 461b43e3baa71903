"""By which rules an archive is kept, and what they keep of all that stands, whatever was decided before.

A trim counts on the word of who owned an epoch once: a device may turn hostile, or be removed from the group, and what it let
go must not leave because of that. So an owner lets nothing be removed that its own rules keep, and takes it back.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from fractal.api.errors import Corrupt
from fractal.archive.timeline import Timeline
from fractal.core.model import Point
from fractal.core.moments import Moment
from fractal.core.retention import Keep, Retained, Slot, retain


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """By what an app's archive is kept: its line, its policy, and what people asked for."""

    epoch: int
    """The own epoch, which is the highest."""
    bases: Mapping[int, Point]
    keep: Keep
    pins: frozenset[Point] = frozenset()
    """Moments that stay: pinned, or about to be restored or forked."""

    def line(self, timeline: Timeline) -> list[Moment]:
        """The main line."""
        return [Moment(r.point, r.wall_ms) for r in timeline.main(self.bases, self.epoch)]

    def retained(self, timeline: Timeline) -> Retained:
        """What stays of what counts in a timeline."""
        sides = [r.point for r in timeline.branches(self.bases, self.epoch)]
        return retain(self.line(timeline), timeline.fitting(), self.keep, pins=self.pins, sides=sides)

    def kept(self, timeline: Timeline, refused: Collection[Slot] = ()) -> frozenset[Slot]:
        """Records of all that stand that the rules keep, as if nothing had been let go.

        By the merges that count, and also by all of them but those `refused`: one that nobody read back must neither go nor
        stand in for what it merges.
        """
        if not timeline.stored.keys() - timeline.counting.keys():
            return frozenset(timeline.counting)
        every = timeline.undone()
        waiting = {slot for slot in timeline.stored if slot[1] and slot not in refused}
        return self.retained(every).needed | self.retained(every.trying(waiting)).needed

    def refuse_cut_line(self) -> None:
        """Raises Corrupt without one of the bases: the line is shorter then, and all that lies before looks like a branch."""
        epoch = self.epoch
        while epoch > 1:
            base = self.bases.get(epoch)
            if base is None:
                raise Corrupt(f"nothing is let go while the base of epoch {epoch} cannot be read")
            epoch = base.epoch if base.epoch < epoch else 0
