"""How fast a log folds: entries per second and core, with and without signature checks.

    python contrib/bench/fold.py [--entries 5000] [--json]

The log is what a busy group of three devices leaves behind: takes, answers, updates, pins. Both figures are taken in one
run on one log, as the best of three.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace

from fractal.core.entries import Answered, Challenged, DeviceUpdated, Entry, Pinned, Serving, Took
from fractal.core.log import fold, state_hash
from fractal.core.model import GroupState, Point
from fractal.crypto.seal import GroupOpener
from fractal.testing.group import World

APP = "a" * 16


class TrustingOpener(GroupOpener):
    """Believes every signature: what the fold costs without them. Never for anything but this figure."""

    def verify(self, public: bytes, message: bytes, signature: bytes) -> bool:  # noqa: ARG002 - as overridden
        """True."""
        return True


def busy_log(entries: int) -> World:
    """A world whose log has that many entries."""
    world = World.founded(seed=1)
    world.join("kitchen", "bob")
    world.join("den", "ann")
    world.install(APP)
    names = ("attic", "kitchen", "den")
    epoch = 0
    while len(world.log) < entries:
        author = names[epoch % 3]
        epoch += 1
        me, other = world.machines[author].id, world.machines[names[epoch % 3]].id
        steps: list[tuple[str, Entry]] = [
            (author, Challenged(device=other)),
            (names[epoch % 3], Answered(seen=len(world.log))),
            (author, Took(epochs={APP: epoch})),
            (author, Serving(app=APP, epoch=epoch)),
            (author, DeviceUpdated(device=me, capacity=epoch)),
            ("attic", Pinned(app=APP, point=Point(epoch=epoch % 900, number=1))),
        ]
        for name, entry in steps:
            world.must(name, entry)
    return world


def rate(world: World, make: Callable[[], GroupOpener]) -> float:
    """Entries per second, the best of three."""
    best = float("inf")
    for _ in range(3):
        opener, state = make(), GroupState(id=world.state.id)
        begun = time.process_time()
        for raw in world.log:
            state = fold(state, raw, opener)
        best = min(best, time.process_time() - begun)
        if state_hash(state) != state_hash(replace(world.state)):
            raise SystemExit("the fold came out differently: this figure means nothing")
    return len(world.log) / best


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--entries", type=int, default=5_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    world = busy_log(options.entries)
    keys = world.machines["kitchen"].keys
    checked = rate(world, lambda: GroupOpener(keys, world.group_keys))
    trusting = rate(world, lambda: TrustingOpener(keys, world.group_keys))
    begun = time.process_time()
    state_hash(world.state)
    hashing = time.process_time() - begun
    figures = {
        "entries": len(world.log),
        "bytes_per_entry": sum(map(len, world.log)) // len(world.log),
        "entries_per_second": round(checked),
        "entries_per_second_without_signatures": round(trusting),
        "state_hash_ms": round(1000 * hashing, 2),
    }
    if options.json:
        json.dump(figures, sys.stdout, indent=1)
        print()
        return
    for name, value in figures.items():
        print(f"{name.replace('_', ' '):40} {value:>12,}")


if __name__ == "__main__":
    main()
