"""What many seeds gave together, kept in a file so that a long run can be interrupted and gone on with."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fractal.core.lease import Why
from fractal.sim.counting import TRANSITIONS
from fractal.sim.faults import DEATHS, GENTLE, HARD, HOSTILE
from fractal.sim.world import Result

DAY = 24 * 3600.0
FULL = 1000
"""Seeds from which on goals are judged: of fewer ones too much is chance."""
FAULTS, TAKEOVERS = 5.0, 0.5
"""Goals: at least so many of each for a seed, on average."""
FROM_DEATH = {"standard": (33.0, 42.0), "fast": (14.0, 22.0)}
"""Goals by profile: p50 and p99 of the seconds from an owner's death to its successor's start."""
DOUBLE = 75.0
"""Goal: the longest, in seconds, when a taker dies too."""
TAKEN = tuple(f"take: {why.value}" for why in (Why.RELEASED, Why.UNHEALTHY, Why.SILENT, Why.REMOVED))
"""What counts as a takeover: neither a first start nor a planned move."""
WIDTH = 0.1
"""Seconds of takeover time that are counted alike."""


@dataclass(slots=True)
class Totals:
    """Sums over seeds."""

    first: int = 0
    next: int = 0
    """The first seed that was not run yet."""
    seconds: float = 0.0
    dense: float = 0.0
    """Simulated seconds without those of seeds in which nothing happens."""
    counts: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    takeovers: dict[str, Counter[str]] = field(default_factory=dict)
    """Profile -> tenths of a second -> how many."""
    cpu: float = 0.0
    """Processor seconds that the seeds took, in all processes."""
    wall: float = 0.0
    """Seconds that all runs took together."""
    failed: dict[str, str] = field(default_factory=dict)
    """Seed -> its first violation."""

    @classmethod
    def load(cls, path: Path | None, first: int) -> Totals:
        """What an earlier run of the same seeds left; nothing if there was none."""
        if path is None or not path.exists():
            return cls(first=first, next=first)
        known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if known["first"] != first:
            raise SystemExit(
                f"{path} is of a run from seed {known['first']}: name another file, or remove it"
            )
        known["counts"], known["kinds"] = Counter(known["counts"]), Counter(known["kinds"])
        known["takeovers"] = {k: Counter(v) for k, v in known["takeovers"].items()}
        return cls(**known)

    def save(self, path: Path | None) -> None:
        """Replace the file whole."""
        if path is None:
            return
        plain = {name: getattr(self, name) for name in self.__slots__}
        new = path.with_suffix(".new")
        new.write_text(json.dumps(plain), encoding="utf-8")
        new.replace(path)

    def add(self, result: Result) -> None:
        """One seed more."""
        self.next = result.seed + 1
        self.seconds += result.seconds
        self.dense += 0.0 if result.kind == "idle" else result.seconds
        self.counts += result.counts
        self.kinds[result.kind] += 1
        for kind, took in result.takeovers:
            self.takeovers.setdefault(kind, Counter())[f"{took / WIDTH:.0f}"] += 1
        if result.violations:
            self.failed[str(result.seed)] = result.violations[0]

    # --- judging ---

    @property
    def taken(self) -> int:
        """Takeovers."""
        return sum(self.counts[kind] for kind in TAKEN)

    def missed(self, last: int) -> list[str]:
        """Goals that the run up to seed `last` (exclusive) missed. Of fewer than `FULL` seeds only that nothing is violated."""
        found = [f"{len(self.failed)} seeds violate an invariant"] if self.failed else []
        seeds = self.kinds.total()
        if last - self.first < FULL:
            return found
        if self.next < last:
            found.append(
                f"{last - self.next} of {last - self.first} seeds did not run: the same command goes on"
            )
        found += [f"never reached: {what}" for what in self.unreached()]
        for what, count, each in (
            ("faults", self.counts["faults"], FAULTS),
            ("takeovers", self.taken, TAKEOVERS),
        ):
            if count < each * seeds:
                found.append(f"{count} {what} in {seeds} seeds: fewer than {each:g} for each")
        for profile, most in FROM_DEATH.items():
            for share, limit in zip((0.5, 0.99), most, strict=True):
                took = _share(self.takeovers.get(profile, Counter()), share)
                if took > limit:
                    found.append(
                        f"p{100 * share:.0f} of death to start, {profile}: {took:.1f} s, not {limit:g} s"
                    )
            took = _share(self.takeovers.get(f"{profile}, double", Counter()), 1.0)
            if took > DOUBLE:
                found.append(f"a double failure, {profile}: {took:.1f} s, not {DOUBLE:g} s")
        if self.counts["idle entries"]:
            found.append(f"{self.counts['idle entries']} log entries of groups that idled")
        return found

    # --- telling ---

    def unreached(self) -> list[str]:
        """Transitions and kinds of fault that no seed had."""
        kinds = (f"fault: {k[0]}" for k in (*HARD, *GENTLE, *HOSTILE, *DEATHS))
        return sorted({t for t in (*TRANSITIONS, *kinds) if not self.counts[t]})

    def lines(self) -> Iterator[str]:
        """The report."""
        counts = self.counts
        kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(self.kinds.items()))
        yield f"{self.kinds.total()} seeds ({kinds}), {self.seconds / 3600:.1f} simulated hours, {self.dense / 3600:.1f} of them dense"
        yield f"{counts['faults']} faults, {self.taken} takeovers, {counts['epochs']} epochs, {counts['checks']} checks of invariants"
        pace = 60 * self.kinds.total() / self.cpu if self.cpu else 0.0
        yield f"{self.wall / 60:.1f} minutes, {self.cpu / 60:.1f} of processors: {pace:.0f} seeds in each of those"
        yield f"{len(self.failed)} seeds failed" + "".join(
            f"\n  {s}: {why}" for s, why in self.failed.items()
        )
        yield "faults by kind: " + _listed(counts, "fault: ")
        yield "transitions: " + ", ".join(f"{counts[t]} {t}" for t in TRANSITIONS)
        yield "never reached: " + (", ".join(self.unreached()) or "none")
        for kind, times in sorted(self.takeovers.items()):
            yield f"death to start, {kind}: {times.total()} times, p50 {_share(times, 0.5):.1f} s, p99 {_share(times, 0.99):.1f} s, most {_share(times, 1.0):.1f} s"
        yield f"moves of an owner that was healthy and connected, gentle seeds: 0; others: {counts['needless moves']}"
        days = counts["idle seconds"] / DAY
        yield f"log entries per idle device-day: {counts['idle entries'] / days if days else 0.0:.2f} ({days:.2f} days)"


def _listed(counts: Mapping[str, int], prefix: str) -> str:
    found = {k.removeprefix(prefix): n for k, n in counts.items() if k.startswith(prefix)}
    return ", ".join(f"{n} {what}" for what, n in sorted(found.items()))


def _share(times: Counter[str], share: float) -> float:
    """The time within which that share of the takeovers was done."""
    left = share * times.total()
    for tenths, count in sorted((int(t), n) for t, n in times.items()):
        left -= count
        if left <= 0:
            return tenths * WIDTH
    return 0.0
