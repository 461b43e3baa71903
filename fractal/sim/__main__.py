"""`python -m fractal.sim`: run seeds; a failure prints its timeline and how to see it again."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from fractal.sim.pool import Run, results
from fractal.sim.totals import Totals
from fractal.sim.world import Result, simulate

SHOWN = 80
"""Lines of the timeline that are shown before the first violation, unless all were asked for."""
SAVE_EVERY = 20
"""Seeds after which a resumable run is noted."""


def main() -> int:
    """Exit code 0 if no seed violates anything and a run of many seeds reaches every goal; else 1."""
    options = _options()
    only = tuple(int(n) for n in options.only.split(",")) if options.only else None
    total = Totals.load(options.state, options.first_seed)
    last = options.first_seed + options.seeds
    run = Run(only, timeline=options.timeline)
    seconds = 60 * options.minutes if options.minutes else float("inf")
    began, before = time.monotonic(), total.wall
    try:
        for result, cpu in results(run, range(total.next, last), jobs=options.jobs, seconds=seconds):
            total.add(result)
            total.cpu += cpu
            total.wall = before + time.monotonic() - began
            if result.violations:
                report(shrunk(result) if options.shrink else result, whole=options.timeline)
            elif options.timeline:
                _print("\n".join(result.timeline))
            if total.next % SAVE_EVERY == 0:
                total.save(options.state)
    finally:
        total.save(options.state)
    _print("\n".join(total.lines()))
    missed = total.missed(last)
    for goal in missed:
        _print(f"GOAL MISSED: {goal}")
    return 1 if missed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m fractal.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="how many seeds to run")
    parser.add_argument("--first-seed", type=int, default=0, help="the first of them")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument(
        "--minutes", type=float, default=0.0, help="stop after so many minutes; 0: when all are done"
    )
    parser.add_argument(
        "--state", type=Path, help="a file that keeps the sums: the same command goes on from there"
    )
    parser.add_argument("--only", default="", help="keep only these faults, by number: 3,7,9")
    parser.add_argument("--shrink", action="store_true", help="look for the fewest faults that still fail")
    parser.add_argument("--timeline", action="store_true", help="print the whole timeline of every seed")
    return parser.parse_args()


def shrunk(result: Result) -> Result:
    """The same kind of violation with as few faults as leaving out halves, quarters ... and single ones gives."""
    kind = result.violations[0].partition(":")[0]
    best = result
    size = len(best.faults) // 2
    while size >= 1:
        at = 0
        while at < len(best.faults):
            fewer = [f.number for n, f in enumerate(best.faults) if not at <= n < at + size]
            tried = simulate(result.seed, only=fewer)
            if any(v.startswith(f"{kind}:") for v in tried.violations):
                best = tried
            else:
                at += size
        size //= 2
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
