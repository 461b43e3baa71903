"""The archive's pipeline against the shell's: `cat stream | zstd -3 | age` on the same bytes.

    .venv/bin/python contrib/bench/archive.py [--full MB] [--memory MB] [--rounds N] [--dir FOLDER]

Figures are CPU seconds of whole process trees (wait4, getrusage), wall seconds, stored bytes, and the peak memory of one
process that does nothing but a large backup. A tick is measured in a process that is warm, as the agent is; the shell's
tools start anew each time, as they would. Ours writes the sealed bytes twice, into the spool and into the store, and flushes
both to the disk; the shell's output is left to the page cache. Medians of a few rounds: read CPU and bytes, walls depend on what else runs.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

MIB = 1 << 20
TICK = 20 * MIB
BLOCK = 128 * MIB
GROUP, APP = "aa" * 16, "bb" * 8
_WORDS = [
    w.encode()
    for w in [
        "id",
        "name",
        "value",
        "true",
        "false",
        "null",
        "user",
        "event",
        "price",
        "status",
        "created",
        "updated",
        "at",
        "of",
        "to",
    ]
]


@dataclass(frozen=True)
class Cost:
    """What one run took."""

    wall: float
    cpu: float
    stored: int
    peak: int = 0
    """Bytes of resident memory."""


# --- what is written -----------------------------------------------------------------------------------------------------


def make_pages(path: Path, size: int, seed: int) -> None:
    """Database-like pages of 4 to 16 KiB: half of them text, half incompressible."""
    chance = random.Random(seed)  # noqa: S311 - reproducible data, no secret
    with path.open("wb") as file:
        while file.tell() < size:
            page = chance.choice([4, 8, 16]) << 10
            file.write(chance.randbytes(page) if chance.random() < 0.5 else _text(chance, page))
        file.truncate(size)


def _text(chance: random.Random, size: int) -> bytes:
    rows, length = [], 0
    while length < size:
        row = b'{"id":%d,"name":"%s","value":%d,"updated":"2026-11-%02d","note":"%s"}' % (
            chance.getrandbits(20),
            chance.choice(_WORDS),
            chance.getrandbits(16),
            chance.randrange(1, 31),
            b" ".join(chance.choices(_WORDS, k=8)),
        )
        rows.append(row)
        length += len(row)
    return b"".join(rows)[:size]


class Files:
    """The part of a snapshotter that a backup uses: the stream is the contents of some files."""

    format = "bench/1"

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    async def send(self, volume: str, name: str, parent: str | None = None) -> AsyncIterator[bytes]:
        """The files, one after the other. `cat` reads them on a processor of its own; here the loop does."""
        del volume, name, parent
        for path in self.paths:
            with path.open("rb", buffering=0) as file:
                while chunk := file.read(MIB):
                    yield chunk


# --- ours ----------------------------------------------------------------------------------------------------------------


async def ours(paths: Sequence[Path], folder: Path, rounds: int) -> list[Cost]:
    """Back the stream up `rounds` times into a directory store, in this process, after a small one to warm up."""
    from fractal.agent.notes import MemoryNotes
    from fractal.api.snapshot import Snapshotter
    from fractal.archive.archive import AppKeyring, Archive
    from fractal.builtin.directory import open_directory
    from fractal.builtin.directory_config import DirectoryConfig
    from fractal.crypto.keys import DeviceKeys, app_keypair
    from fractal.testing.context import real_context

    warm = folder / "warm"
    warm.write_bytes(bytes(MIB))
    async with (
        real_context(folder) as context,
        open_directory(context, DirectoryConfig(path=folder / "store")) as store,
    ):
        keys = DeviceKeys.generate(context.entropy)
        public, _ = app_keypair(context.entropy)
        archive = Archive(
            group=GROUP,
            app=APP,
            store=store,
            keys=keys,
            app_keys=AppKeyring(generation=1, public=public),
            group_key=lambda _: (1, bytes(32)),
            sign_key_of=lambda _: keys.sign_public,
            clock=context.clock,
            entropy=context.entropy,
            workers=context.workers,
            spool=folder / "spool",
            notes=MemoryNotes(),
        )
        costs = []
        for number in range(rounds + 1):
            files = cast("Snapshotter", Files(paths if number else [warm]))
            wall, cpu = time.monotonic(), _cpu_of_self()
            record = await archive.write(1, snapshotter=files, volume="v", name=f"t-{number}", wall_ms=0)
            costs.append(Cost(time.monotonic() - wall, _cpu_of_self() - cpu, record.stored))
        return costs[1:]


def _cpu_of_self() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


# --- the floor -------------------------------------------------------------------------------------------------------------


def floor(command: str, out: Path) -> Cost:
    """A shell pipeline that writes to `out`."""
    started = time.monotonic()
    process = subprocess.Popen(["sh", "-c", command])
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command}: exit status {process.returncode}")
    cost = Cost(time.monotonic() - started, used.ru_utime + used.ru_stime, out.stat().st_size)
    out.unlink()
    return cost


def floors(paths: Sequence[Path], folder: Path, rounds: int) -> dict[str, list[Cost]]:
    """The shell's pipelines, as far as their tools are here."""
    if shutil.which("zstd") is None:
        print("skipped: the shell's pipelines (zstd is not installed: apt install zstd)")
        return {}
    out, names = folder / "out", " ".join(str(p) for p in paths)
    compress = f"cat {names} | zstd -3 -q -c"
    result = {"cat | zstd -3": [floor(f"{compress} > {out}", out) for _ in range(rounds)]}
    if shutil.which("age") is None or shutil.which("age-keygen") is None:
        print("skipped: cat | zstd -3 | age (age is not installed: apt install age)")
        return result
    key = folder / "age.key"
    if not key.exists():
        subprocess.run(["age-keygen", "-o", str(key)], check=True, capture_output=True)
    public = subprocess.run(
        ["age-keygen", "-y", str(key)], check=True, capture_output=True, text=True
    ).stdout.strip()
    command = f"{compress} | age -r {public} > {out}"
    result["cat | zstd -3 | age"] = [floor(command, out) for _ in range(rounds)]
    return result


# --- the table -------------------------------------------------------------------------------------------------------------


def median(costs: Sequence[Cost]) -> Cost:
    """Each figure's median."""
    return Cost(
        statistics.median(c.wall for c in costs),
        statistics.median(c.cpu for c in costs),
        int(statistics.median(c.stored for c in costs)),
    )


def table(title: str, size: int, rows: dict[str, Cost], ours_name: str) -> None:
    """Every row, and the ratios of ours to it."""
    print(f"\n{title} ({size / MIB:.0f} MiB)")
    print(
        f"  {'pipeline':<24}{'wall s':>8}{'CPU s':>8}{'stored MB':>11}{'wall x':>8}{'CPU x':>8}{'bytes x':>9}"
    )
    mine = rows[ours_name]
    for name, cost in rows.items():
        ratios = "" if name == ours_name else _ratios(mine, cost)
        print(f"  {name:<24}{cost.wall:>8.2f}{cost.cpu:>8.2f}{cost.stored / 1e6:>11.2f}{ratios}")


def _ratios(mine: Cost, other: Cost) -> str:
    return f"{mine.wall / other.wall:>8.2f}{mine.cpu / other.cpu:>8.2f}{mine.stored / other.stored:>9.3f}"


def compare(title: str, paths: Sequence[Path], folder: Path, rounds: int) -> None:
    """One table: ours against the floors on the same bytes."""
    scratch = folder / "scratch"
    scratch.mkdir()
    rows = {"fractal archive": median(asyncio.run(ours(paths, scratch, rounds)))}
    rows |= {name: median(costs) for name, costs in floors(paths, scratch, rounds).items()}
    shutil.rmtree(scratch)
    table(title, sum(p.stat().st_size for p in paths), rows, "fractal archive")


def peak_memory(paths: Sequence[Path], folder: Path) -> Cost:
    """A backup in a fresh process: peak resident memory, interpreter and libraries included."""
    scratch = folder / "memory"
    scratch.mkdir()
    started = time.monotonic()
    argv = [sys.executable, __file__, "--child", str(scratch), *map(str, paths)]
    process = subprocess.Popen(argv)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    shutil.rmtree(scratch)
    if process.returncode:
        raise SystemExit(f"the backup failed with exit status {process.returncode}")
    return Cost(time.monotonic() - started, used.ru_utime + used.ru_stime, 0, used.ru_maxrss * 1024)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--full", type=int, default=512, metavar="MB", help="size of the full backup")
    parser.add_argument(
        "--memory", type=int, default=2048, metavar="MB", help="size of the backup for peak memory; 0: none"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--dir", type=Path, default=None, help="folder for scratch files (twice the largest size)"
    )
    parser.add_argument("--child", nargs="+", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        asyncio.run(ours(options.child[1:], options.child[0], 1))
        return
    with tempfile.TemporaryDirectory(prefix="fractal-bench-", dir=options.dir) as name:
        folder = Path(name)
        tick, block = folder / "tick", folder / "block"
        make_pages(tick, TICK, 1)
        make_pages(block, BLOCK, 2)
        compare("Tick", [tick], folder, max(options.rounds, 3))
        blocks = [block] * max(1, options.full * MIB // BLOCK)
        compare("Full backup", blocks, folder, 1 if options.full > 1024 else options.rounds)
        if options.memory:
            blocks = [block] * max(1, options.memory * MIB // BLOCK)
            cost = peak_memory(blocks, folder)
            print(f"\nPeak memory of a backup of {len(blocks) * BLOCK / MIB:.0f} MiB: {cost.peak / MIB:.0f} MiB "
                  f"(goal: 128 MiB or less), {cost.wall:.1f} s, {cost.cpu:.1f} CPU s")  # fmt: skip


if __name__ == "__main__":
    main()
