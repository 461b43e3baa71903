"""What one seed is about: how large the group is, what its servers promise, and what kind of faults it is given."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

FAULTS_FOR = 450.0
"""Simulated seconds in which faults begin."""
BOUND = 150.0
"""Seconds after the last fault ended by which every app must run."""
SETTLES = 300.0
"""Seconds after which a group that was just made has said all that it has to say."""
IDLE_FOR = 1500.0
"""Seconds of nothing after that, whose log entries are counted."""
UNSEEN = 75.0
"""Seconds for which a lying log server can keep a replaced owner running: 60 s between two listings of the store, one listing's
time-out, the freeze (docs/explanation/simulation.md)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Drawn from the seed, or given by a test."""

    kind: str = "hard"
    """`hard`: any fault. `gentle`: none that is a reason to move an app. `deaths`: owners die, or apps get sick where they go, and nothing else goes wrong.
    `hostile`: any fault, and a log server that forks, reorders and withholds. `idle`: nothing happens."""
    profile: str = "standard"
    size: int = 3
    apps: int = 1
    store_lag: float = 0.0
    log_lag: float = 0.0
    excess_lag: float = 0.0
    mortal: int | None = None
    """A device that dies for good when faults end."""
    drift: float = 0.01
    """By how much the fastest clock may be faster than the slowest: I1 is promised up to 1 %."""
    bent: bool = False
    """There is an app whose store cannot be opened."""
    interval: int = 0
    """Milliseconds between two snapshots; 0: drawn, 10 or 30 s."""
    faults_for: float = FAULTS_FOR
    rest: float = BOUND

    @property
    def gentle(self) -> bool:
        """Whether nothing happens that is a reason to move an app."""
        return self.kind in ("gentle", "idle")

    @property
    def overlap(self) -> float:
        """Seconds for which two devices may run one app; 0: never."""
        return UNSEEN if self.kind == "hostile" else 0.0


def drawn(random: Random) -> Scene:
    """One seed's scene."""
    point = random.random()
    bounds = ((0.12, "gentle"), (0.30, "deaths"), (0.37, "hostile"), (0.375, "idle"), (1.0, "hard"))
    kind = next(name for limit, name in bounds if point < limit)
    size = random.choice((3, 3, 3, 4) if kind == "deaths" else (2, 2, 2, 3, 3, 4))
    profile = random.choice(("standard", "standard", "fast", "patient"))
    if kind in ("gentle", "idle") and profile == "fast":
        profile = "standard"  # `fast` moves healthy owners under faults, and says so
    mortal = random.randrange(size) if kind == "hard" and random.random() < 0.5 else None
    lagging = kind in ("hard", "gentle") and random.random() < 0.25
    return Scene(
        kind=kind,
        profile=profile,
        size=size,
        apps=random.choice((1, 1, 1, 2)),
        mortal=mortal,
        store_lag=random.choice((2.0, 5.0, 10.0)) if lagging and random.random() < 0.6 else 0.0,
        log_lag=random.choice((0.5, 1.5)) if lagging and random.random() < 0.6 else 0.0,
        bent=random.random() < 0.1,
        faults_for=SETTLES if kind == "idle" else FAULTS_FOR,
        rest=IDLE_FOR if kind == "idle" else BOUND,
    )
