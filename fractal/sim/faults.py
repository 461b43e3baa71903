"""What goes wrong, drawn from the seed before anything runs: so that a failure can be tried again with fewer faults."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from fractal.sim import machine_faults, network_faults, people_faults

if TYPE_CHECKING:
    from fractal.sim.machine import Machine
    from fractal.sim.scene import Scene
    from fractal.sim.world import World


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that goes wrong, for a while."""

    number: int
    at: float
    kind: str
    devices: tuple[int, ...]
    """Which devices it concerns, by number."""
    seconds: float
    value: float
    """A number in [0, 1) that decides details."""

    def __str__(self) -> str:
        who = ",".join(f"d{d}" for d in self.devices)
        return f"fault {self.number}: {self.kind} {who} for {self.seconds:.0f} s ({self.value:.2f})"


HARD: Sequence[tuple[str, int, float, float]] = (
    # kind, weight, shortest, longest
    ("agent killed", 4, 0.5, 40),
    ("power cut", 4, 3, 90),
    ("killed at a moment", 10, 1, 1),
    ("agent frozen", 4, 3, 60),
    ("machine sleeps", 5, 2, 90),
    ("cut off", 5, 5, 90),
    ("cut off but hears", 3, 10, 90),
    ("unheard, then cut off", 7, 15, 60),
    ("cut off from the log", 4, 5, 60),
    ("cut off from the store", 4, 5, 60),
    ("cut off after an append", 3, 10, 60),
    ("reads the log, nothing else", 3, 20, 60),
    ("router reboots", 2, 60, 120),
    ("log down", 2, 3, 60),
    ("log slow", 2, 10, 60),
    ("log limits", 3, 20, 90),
    ("store down", 2, 3, 60),
    ("slow store", 2, 10, 60),
    ("store hides", 2, 10, 60),
    ("loss", 3, 10, 60),
    ("duplicates", 2, 10, 90),
    ("slow network", 3, 10, 60),
    ("success looks like failure", 4, 10, 90),
    ("store executes late", 3, 10, 90),
    ("disk full", 3, 10, 60),
    ("disk slow", 3, 10, 60),
    ("wall clock steps", 1, 1, 1),
    ("move", 5, 1, 1),
    ("drain", 2, 30, 120),
    ("app gets sick", 1, 60, 200),
    ("app does not start", 2, 30, 200),
    ("moves to where it gets sick", 2, 150, 250),
    ("moves to where it does not start", 2, 150, 250),
    ("killed at its release", 3, 1, 1),
    ("gives up in its wait", 3, 40, 120),
    ("timers change", 1, 1, 1),
    ("orderly end", 2, 30, 90),
    ("guard killed", 2, 1, 1),
    ("muted", 2, 20, 90),
    ("restore", 2, 1, 1),
    ("device joins", 2, 40, 90),
    ("member joins", 1, 40, 90),
    ("device removed", 2, 1, 1),
    ("device leaves", 1, 1, 1),
)
GENTLE: Sequence[tuple[str, int, float, float]] = (
    ("muted", 5, 10, 120),
    ("wall clock steps", 2, 1, 1),
    ("agent killed", 3, 0.5, 4),
    ("store down", 3, 5, 60),
    ("cut off from the store", 2, 5, 60),
    ("log down", 3, 3, 60),
    ("log limits", 3, 20, 90),
    ("disk slow", 3, 10, 60),
    ("duplicates", 1, 10, 90),
    ("success looks like failure", 1, 10, 60),
)
"""None of these is a reason to move an app."""
HOSTILE: Sequence[tuple[str, int, float, float]] = (
    ("log withholds", 12, 30, 120),
    ("log forks", 5, 1, 1),
    ("log reorders", 5, 1, 1),
)
"""What a lying log server adds to the rest."""
DEATHS: Sequence[tuple[str, int, float, float]] = (
    ("owner dies", 4, 110, 140),
    ("owner dies, then its taker", 2, 150, 170),
    ("moves to where it gets sick", 1, 150, 170),
)
"""One after the other; the last, as an app has two minutes to get healthy, in which little else may happen to it."""


KINDS: Mapping[str, Callable[[World, Machine, Fault], None]] = {
    **machine_faults.KINDS,
    **network_faults.KINDS,
    **people_faults.KINDS,
}
"""What each kind does to a device."""


def draw(random: Random, scene: Scene) -> list[Fault]:
    """Faults until the scene's end of faults: one every 4 to 25 s, deaths as far apart as one takes to be over."""
    kinds = {"gentle": GENTLE, "hostile": (*HARD, *HOSTILE), "deaths": DEATHS, "idle": ()}.get(
        scene.kind, HARD
    )
    faults: list[Fault] = []
    at = random.uniform(25.0, 40.0)
    while kinds and at < scene.faults_for:
        kind, _, low, high = random.choices(kinds, [k[1] for k in kinds])[0]
        size = random.choice((1, 1, 1, 2)) if kind.startswith("cut off") and not scene.gentle else 1
        chosen = tuple(sorted(random.sample(range(scene.size), min(size, scene.size))))
        length = low + (high - low) * random.random() ** 2
        faults.append(
            Fault(number=len(faults), at=at, kind=kind, devices=chosen, seconds=length, value=random.random())
        )
        at += length + random.uniform(60.0, 80.0) if scene.kind == "deaths" else random.uniform(4.0, 25.0)
    return faults


def apply(world: World, fault: Fault) -> None:
    """Let it happen now, and end after its time."""
    world.say(None, str(fault))
    world.counts["faults"] += 1
    world.counts[f"fault: {fault.kind}"] += 1
    for number in fault.devices:
        KINDS[fault.kind](world, world.machines[number], fault)
