"""The archive's pipeline against the shell's, on the same bytes and with the same promise: on the disk when it returns.

    .venv/bin/python contrib/bench/archive.py [--full MB] [--memory MB] [--rounds N] [--dir FOLDER]

Writing is compared to `cat stream | zstd -3 | age > out; sync out`, reading to `age -d | zstd -d > stream`. Figures are CPU
seconds of whole process trees (wait4, getrusage), wall seconds, stored bytes, and the peak memory of one process that does
nothing but a large backup. Ours runs in a process that is warm, as the agent is; the shell's tools start anew each time, as they
would. Each round runs every pipeline once, so that what else the machine does hits all of them; medians are shown.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from volume_data import make_tick, make_volume

from fractal.agent.notes import MemoryNotes
from fractal.api.snapshot import Snapshot, Snapshotter
from fractal.archive.archive import AppKeyring, Archive
from fractal.builtin.directory import open_directory
from fractal.builtin.directory_config import DirectoryConfig
from fractal.core.model import Point
from fractal.crypto.keys import DeviceKeys, app_keypair
from fractal.testing.context import real_context

MIB = 1 << 20
TICK = 20 * MIB
BLOCK = 128 * MIB
GROUP, APP = "aa" * 16, "bb" * 8
OURS, FLOOR = "fractal archive", "cat | zstd -3 | age; sync"


@dataclass(frozen=True)
class Cost:
    """What one run took."""

    wall: float
    cpu: float
    stored: int = 0
    peak: int = 0
    """Bytes of resident memory."""


# --- ours ----------------------------------------------------------------------------------------------------------------


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


class Sink:
    """The part of a snapshotter that a restore uses: the stream becomes a file."""

    format = "bench/1"
    receives = frozenset({"bench/1"})

    def __init__(self, path: Path) -> None:
        self.path = path

    async def snapshots(self, volume: str) -> Sequence[Snapshot]:
        """None yet."""
        del volume
        return ()

    async def receive(
        self,
        volume: str,
        name: str,
        chunks: AsyncIterator[bytes],
        *,
        stream_format: str,
        parent: str | None = None,
    ) -> Snapshot:
        """Write it."""
        del stream_format, parent
        with self.path.open("wb", buffering=0) as file:
            async for chunk in chunks:
                file.write(chunk)
        return Snapshot(volume=volume, name=name, path=self.path)


@dataclass
class Ours:
    """The archive of one app over a directory store, in this process."""

    archive: Archive
    folder: Path
    number: int = 0
    base: Point | None = None
    """The small full that ticks follow."""

    async def write(self, paths: Sequence[Path], *, full: bool) -> Cost:
        """Back the stream up."""
        self.number += 1
        files = cast("Snapshotter", Files(paths))
        wall, cpu = time.monotonic(), _cpu_of_self()
        record = await self.archive.write(
            1,
            snapshotter=files,
            volume="v",
            name=f"t-{self.number}",
            wall_ms=0,
            parent=None if full else self.base,
            name_of=lambda p: f"t-{p.number}",
        )
        return Cost(time.monotonic() - wall, _cpu_of_self() - cpu, record.stored)

    async def restore(self) -> Cost:
        """Bring back what was written last."""
        sink = cast("Snapshotter", Sink(self.folder / "restored"))
        wall, cpu = time.monotonic(), _cpu_of_self()
        point = Point(epoch=1, number=self.number)
        await self.archive.restore(point, snapshotter=sink, volume="v", name_of=lambda p: f"t-{p.number}")
        cost = Cost(time.monotonic() - wall, _cpu_of_self() - cpu, 0)
        (self.folder / "restored").unlink()
        return cost


@asynccontextmanager
async def ours(folder: Path) -> AsyncIterator[Ours]:
    """An archive that a small backup has warmed up."""
    async with (
        real_context(folder) as context,
        open_directory(context, DirectoryConfig(path=folder / "store")) as store,
    ):
        keys = DeviceKeys.generate(context.entropy)
        public, secret = app_keypair(context.entropy)
        archive = Archive(
            group=GROUP,
            app=APP,
            store=store,
            keys=keys,
            app_keys=AppKeyring(generation=1, public=public, secrets={1: secret}),
            group_key=lambda _: (1, bytes(32)),
            sign_key_of=lambda _: keys.sign_public,
            clock=context.clock,
            entropy=context.entropy,
            workers=context.workers,
            spool=folder / "spool",
            notes=MemoryNotes(),
        )
        warm = folder / "warm"
        warm.write_bytes(bytes(MIB))
        found = Ours(archive, folder)
        await found.write([warm], full=True)
        found.base = Point(epoch=1, number=1)
        yield found


def _cpu_of_self() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


# --- the floor -------------------------------------------------------------------------------------------------------------


class Floor:
    """The shell's pipelines, as far as their tools are here."""

    def __init__(self, paths: Sequence[Path], folder: Path) -> None:
        self.out, self.back = folder / "out", folder / "back"
        names = " ".join(map(str, paths))
        self.writes: dict[str, str] = {}
        self.reads: dict[str, str] = {}
        if shutil.which("zstd") is None:
            print("skipped: the shell's pipelines (zstd is not installed: apt install zstd)")
            return
        compress = f"cat {names} | zstd -3 -q -c"
        self.writes["cat | zstd -3; sync"] = f"{compress} > {self.out}; sync {self.out}"
        if shutil.which("age") is None or shutil.which("age-keygen") is None:
            print("skipped: cat | zstd -3 | age (age is not installed: apt install age)")
            return
        key = folder / "age.key"
        subprocess.run(["age-keygen", "-o", str(key)], check=True, capture_output=True)
        public = subprocess.run(
            ["age-keygen", "-y", str(key)], check=True, capture_output=True, text=True
        ).stdout.strip()
        self.writes[FLOOR] = f"{compress} | age -r {public} > {self.out}; sync {self.out}"
        self.reads["age -d | zstd -d"] = f"age -d -i {key} < {self.out} | zstd -d -q -c > {self.back}"

    def write(self, name: str) -> Cost:
        """Run it; its output stays until the next."""
        self.out.unlink(missing_ok=True)
        return replace(_run(self.writes[name]), stored=self.out.stat().st_size)

    def read(self, name: str) -> Cost:
        """Run it on the output of `FLOOR`."""
        cost = _run(self.reads[name])
        self.back.unlink()
        return cost


def _run(command: str) -> Cost:
    started = time.monotonic()
    process = subprocess.Popen(["sh", "-c", command])
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command}: exit status {process.returncode}")
    return Cost(time.monotonic() - started, used.ru_utime + used.ru_stime)


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
        f"  {'pipeline':<28}{'wall s':>8}{'CPU s':>8}{'stored MB':>11}{'wall x':>8}{'CPU x':>8}{'bytes x':>9}"
    )
    mine = rows[ours_name]
    for name, cost in rows.items():
        ratios = "" if name == ours_name else _ratios(mine, cost)
        print(f"  {name:<28}{cost.wall:>8.2f}{cost.cpu:>8.2f}{cost.stored / 1e6:>11.2f}{ratios}")


def _ratios(mine: Cost, other: Cost) -> str:
    stored = f"{mine.stored / other.stored:>9.3f}" if other.stored else ""
    return f"{mine.wall / other.wall:>8.2f}{mine.cpu / other.cpu:>8.2f}{stored}"


async def compare(title: str, paths: Sequence[Path], folder: Path, rounds: int, *, full: bool) -> None:
    """Two tables: ours against the floors on the same bytes, there and back."""
    scratch = folder / "scratch"
    scratch.mkdir()
    floor = Floor(paths, scratch)
    writes: dict[str, list[Cost]] = {OURS: [], **{name: [] for name in floor.writes}}
    reads: dict[str, list[Cost]] = {OURS: [], **{name: [] for name in floor.reads}}
    async with ours(scratch) as mine:
        for _ in range(rounds):
            writes[OURS].append(await mine.write(paths, full=full))
            for name in floor.writes:
                writes[name].append(floor.write(name))
            reads[OURS].append(await mine.restore())
            for name in floor.reads:
                reads[name].append(floor.read(name))
    shutil.rmtree(scratch)
    size = sum(p.stat().st_size for p in paths)
    table(title, size, {name: median(costs) for name, costs in writes.items()}, OURS)
    table(f"{title}: restore", size, {name: median(costs) for name, costs in reads.items()}, OURS)


async def backup_once(paths: Sequence[Path], folder: Path) -> None:
    """What the process does whose memory is measured."""
    async with ours(folder) as mine:
        await mine.write(paths, full=True)


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
        asyncio.run(backup_once(options.child[1:], options.child[0]))
        return
    with tempfile.TemporaryDirectory(prefix="fractal-bench-", dir=options.dir) as name:
        folder = Path(name)
        tick, block = folder / "tick", folder / "block"
        make_tick(tick, TICK, 1)
        make_volume(block, BLOCK, 2)
        asyncio.run(compare("Tick", [tick], folder, max(options.rounds, 9), full=False))
        blocks = [block] * max(1, options.full * MIB // BLOCK)
        asyncio.run(compare("Full backup", blocks, folder, options.rounds, full=True))
        if options.memory:
            blocks = [block] * max(1, options.memory * MIB // BLOCK)
            cost = peak_memory(blocks, folder)
            print(f"\nPeak memory of a backup of {len(blocks) * BLOCK / MIB:.0f} MiB: {cost.peak / MIB:.0f} MiB "
                  f"(goal: 128 MiB or less), {cost.wall:.1f} s, {cost.cpu:.1f} CPU s")  # fmt: skip


if __name__ == "__main__":
    main()
