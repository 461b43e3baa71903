"""How long a standby with a warm copy takes from the decision to take an app over to a volume that the app can start on.

    .venv/bin/python contrib/bench/takeover_real.py [MB ...]

As root, with btrfs-progs. For each size: an owner with a btrfs of its own saves a volume of that size and two ticks of 5 MB; a
standby with another one receives the volume and the first tick. Then the owner is gone, and the standby does what an agent does:
list the store, receive the tick that it lacks, check it out. The wait before (docs/explanation/failover.md) depends on timers
and the app's start on the app; neither on this. Beside it: the same on a device that has nothing.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from archive_real import MIB, VOLUME, Group, Ours, check_root, ours, scratch

from fractal.core.model import Point

TICK = 5 * MIB
BLOCK = 16 * MIB
SMALL = 200
"""Small files for each block."""
ROUNDS = 3


def fill(top: Path, size: int) -> None:
    """Large files of noise, and small ones."""
    left, number = size, 0
    while left > 0:
        (top / f"large{number}").write_bytes(os.urandom(min(BLOCK, left)))
        folder = top / f"small{number}"
        folder.mkdir()
        for name in range(SMALL):
            (folder / str(name)).write_bytes(b"%d " % name * 50)
        left -= BLOCK
        number += 1


def write(top: Path) -> None:
    """A tick: pages all over the large files."""
    files = sorted(top.glob("large*"))
    for number in range(TICK // (16 << 10)):
        with files[number % len(files)].open("r+b") as file:
            file.seek(number * 7919 * 4096 % (BLOCK // 2))
            file.write(os.urandom(16 << 10))


def name_of(point: Point) -> str:
    """On the standby."""
    return f"t{point.number}"


async def take(standby: Ours, volume: str) -> float:
    """Seconds until the volume is there."""
    began = time.monotonic()
    timeline = await standby.archive.timeline()
    snapshot = await standby.archive.restore(
        timeline.points[-1], snapshotter=standby.snapshotter, volume=volume, name_of=name_of
    )
    await standby.snapshotter.checkout(volume, snapshot.name)
    return time.monotonic() - began


async def measure(folder: Path, size: int) -> tuple[list[float], float]:
    """Takeovers with a warm copy, and one without."""
    group = Group.made(folder / "store")
    for name in ("owner", "standby"):
        (folder / name).mkdir()
    async with ours(folder / "owner", size, group) as owner, ours(folder / "standby", size, group) as standby:
        root = await owner.snapshotter.create_root(VOLUME)
        await asyncio.to_thread(fill, root, size * MIB)
        await owner.save()
        warm = []
        await take(standby, "warm")  # the first copy, not measured
        for _ in range(ROUNDS):
            for last in (False, True):
                await asyncio.to_thread(write, root)
                await owner.save()
                if not last:  # as it appears
                    timeline = await standby.archive.timeline()
                    await standby.archive.restore(
                        timeline.points[-1], snapshotter=standby.snapshotter, volume="warm", name_of=name_of
                    )
            await standby.snapshotter.delete_root("warm")
            warm.append(await take(standby, "warm"))
        return warm, await take(standby, "cold")


def main(sizes: Sequence[int]) -> None:
    """Measure and print a table."""
    check_root(("mkfs.btrfs",))
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors\n")
    print("| app data | with a warm copy, s | without, s |\n| ---: | ---: | ---: |")
    for size in sizes:
        with scratch(None) as folder:
            warm, cold = asyncio.run(measure(folder, size))
        spread = ", ".join(f"{seconds:.2f}" for seconds in sorted(warm))
        print(f"| {size} MB | {spread} | {cold:.1f} |", flush=True)


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]] or [100, 1000, 4000])
