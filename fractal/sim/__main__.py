"""`python -m fractal.sim`: run seeds; a failure prints its timeline and how to see it again."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor

from fractal.sim.world import Result, simulate

SHOWN = 80
"""Lines of the timeline that are shown before the first violation, unless all were asked for."""


def main() -> int:
    """Exit code 0 if no seed violates anything."""
    parser = argparse.ArgumentParser(prog="python -m fractal.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="how many seeds to run")
    parser.add_argument("--first-seed", type=int, default=0, help="the first of them")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--only", default="", help="keep only these faults, by number: 3,7,9")
    parser.add_argument("--shrink", action="store_true", help="look for the fewest faults that still fail")
    parser.add_argument("--timeline", action="store_true", help="print the whole timeline of every seed")
    options = parser.parse_args()
    only = tuple(int(n) for n in options.only.split(",")) if options.only else None
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    failed = 0
    total: Counter[str] = Counter()
    seconds = 0.0
    with ProcessPoolExecutor(max(1, options.jobs)) as pool:
        for result in pool.map(_Run(only), seeds):
            total += result.counts
            seconds += result.seconds
            if result.violations:
                failed += 1
                report(shrunk(result) if options.shrink else result, whole=options.timeline)
            elif options.timeline:
                _print("\n".join(result.timeline))
    counts = ", ".join(f"{number} {what}" for what, number in sorted(total.items()))
    _print(f"{len(seeds)} seeds, {seconds / 3600:.1f} simulated hours, {counts}; {failed} seeds failed")
    return 1 if failed else 0


class _Run:
    """One seed, in a process of the pool."""

    def __init__(self, only: tuple[int, ...] | None) -> None:
        self.only = only

    def __call__(self, seed: int) -> Result:
        return simulate(seed, only=self.only)


def shrunk(result: Result) -> Result:
    """The same kind of violation with as few faults as leaving out one after the other gives."""
    kind = result.violations[0].partition(":")[0]
    best = result
    for fault in reversed(result.faults):
        fewer = [f.number for f in best.faults if f.number != fault.number]
        tried = simulate(result.seed, only=fewer)
        if any(v.startswith(f"{kind}:") for v in tried.violations):
            best = tried
    return best


def report(result: Result, *, whole: bool) -> None:
    """What happened, and the command that makes it happen again."""
    lines = list(result.timeline)
    if not whole:
        first = next((n for n, line in enumerate(lines) if "VIOLATION" in line), len(lines))
        lines = lines[max(0, first - SHOWN) : first + 10]
    only = ",".join(str(f.number) for f in result.faults)
    _print("\n".join(lines))
    _print(f"seed {result.seed} failed:")
    for violation in result.violations:
        _print(f"  {violation}")
    _print(f"again: python -m fractal.sim --seeds 1 --first-seed {result.seed} --only {only} --timeline\n")


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
