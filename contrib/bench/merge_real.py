"""A merge on a real btrfs beside the ticks that it replaces, with and without the pages that equal the parent's.

    .venv/bin/python contrib/bench/merge_real.py [--size MB] [--tick MB] [--ticks N]

As root; needs btrfs-progs. Two files of the same size in a loop file, one of them followed by a hole as every SQLite file over 1 GiB has
one; a tick writes pages of 4 to 16 KiB at random places of both. Bytes are of the streams, compressed by zstd -3 in one go.
Processor seconds are of this process: the kernel's send, the comparing, the compressing. Each is done three times, in turns; medians.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import resource
import statistics
from collections.abc import AsyncIterator
from pathlib import Path

import zstandard  # noqa: TID253 - a script, not the product
from archive_real import scratch
from fractal_btrfs.config import BtrfsConfig
from fractal_btrfs.snapshotter import BtrfsSnapshotter, open_btrfs

from fractal.testing.context import real_context

MIB = 1 << 20
PAGE = 4096
RUNS = 3


def _used() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def cost(stream: AsyncIterator[bytes]) -> tuple[int, int, float]:
    """Bytes of a stream, of what is left when it is compressed, and processor seconds."""
    before, raw, small, pack = _used(), 0, 0, zstandard.ZstdCompressor(level=3).compressobj()
    async for chunk in stream:
        raw += len(chunk)
        small += len(pack.compress(chunk))
    return raw, small + len(pack.flush()), _used() - before


def pages(count: int, chance: random.Random) -> bytes:
    """Half of each is noise."""
    return b"".join(chance.randbytes(PAGE // 2).ljust(PAGE, b"\0") for _ in range(count))


def fill(root: Path, size: int, chance: random.Random) -> None:
    """All of it on the disk."""
    for name in ("hole", "whole"):
        with (root / name).open("wb") as file:
            for _ in range(size // 2 // MIB):
                file.write(pages(MIB // PAGE, chance))
            if name == "hole":
                file.seek(PAGE, os.SEEK_CUR)
                file.write(chance.randbytes(MIB))
            os.fsync(file.fileno())


def patch(root: Path, written: int, chance: random.Random) -> None:
    """One tick."""
    files = [os.open(root / name, os.O_RDWR) for name in ("hole", "whole")]
    while written > 0:
        file, data = (
            chance.choice(files),
            pages(chance.choice((1, 2, 4)), chance),
        )
        os.pwrite(file, data, chance.randrange(os.fstat(file).st_size // PAGE - 4) * PAGE)
        written -= len(data)
    for file in files:
        os.fsync(file)
        os.close(file)


async def run(opened: BtrfsSnapshotter, options: argparse.Namespace) -> None:
    """Everything, on one volume."""
    chance = random.Random(1)  # noqa: S311 - reproducible data, no secret
    root = await opened.create_root("app")
    fill(root, options.size * MIB, chance)
    await opened.snapshot("app", "0")
    ticks = []
    for number in range(1, options.ticks + 1):
        patch(root, options.tick * MIB, chance)
        await opened.snapshot("app", str(number))
        ticks.append(await cost(opened.send("app", str(number), str(number - 1))))
    last = str(options.ticks)
    whole, lean, tick, lean_tick = [], [], [], []
    for _ in range(RUNS):
        whole.append(await cost(opened.send("app", last, "0")))
        lean.append(await cost(opened.send_lean("app", last, "0")))
        tick.append(await cost(opened.send("app", last, str(options.ticks - 1))))
        lean_tick.append(await cost(opened.send_lean("app", last, str(options.ticks - 1))))
    total = sum(t[0] for t in ticks), sum(t[1] for t in ticks), sum(t[2] for t in ticks)
    print("| | stream MB | zstd MB | CPU s | bytes, to the ticks |\n| --- | ---: | ---: | ---: | ---: |")
    for name, (raw, small, used) in (
        (f"the {len(ticks)} ticks, together", total),
        ("merge, as the kernel sends it", _median(whole)),
        ("merge, without what the parent has", _median(lean)),
        ("last tick", _median(tick)),
        ("last tick, without what its parent has", _median(lean_tick)),
    ):
        print(f"| {name} | {raw / 1e6:.1f} | {small / 1e6:.1f} | {used:.2f} | {small / total[1]:.2f} |")


def _median(costs: list[tuple[int, int, float]]) -> tuple[int, int, float]:
    return costs[0][0], costs[0][1], statistics.median(c[2] for c in costs)


async def main() -> None:
    """A pool that is gone afterwards."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--tick", type=int, default=1)
    parser.add_argument("--ticks", type=int, default=60)
    options = parser.parse_args()
    with scratch(None) as folder:
        pool = BtrfsConfig(pool=folder / "pool", size=f"{max(2, 4 * options.size >> 10)}G")
        async with real_context(folder / "state") as context, open_btrfs(context, pool) as opened:
            await run(opened, options)


if __name__ == "__main__":
    asyncio.run(main())
