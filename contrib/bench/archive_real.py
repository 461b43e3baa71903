"""The archive on a real btrfs against `btrfs send | zstd -3 | age`, restic and borg: same volume, same ticks, one run.

    .venv/bin/python contrib/bench/archive_real.py [--size MB] [--tick MB] [--ticks N] [--dir FOLDER]

As root; needs btrfs-progs, zstd, age, restic and borgbackup (Debian). The volume lies in a loop file that the btrfs plugin makes.
Ours is the agent's own archive, snapshotter and directory store in one warm process, as in the agent: its figures are what a call
adds, its children included. Everybody else is a process that starts anew each time, as it would. All write to the same disk, and
are done when it is on the disk. Processor seconds are of whole trees (getrusage, wait4); what the kernel's own threads do is in
nobody's. Peak memory is that of the largest process; ours is the whole process with the interpreter.
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
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from fractal_btrfs.config import BtrfsConfig
from fractal_btrfs.snapshotter import BtrfsSnapshotter, open_btrfs
from volume_tree_data import change_tree

from fractal.agent.notes import MemoryNotes
from fractal.archive.archive import AppKeyring, Archive, Here, Rules
from fractal.builtin.directory import open_directory
from fractal.builtin.directory_config import DirectoryConfig
from fractal.core.model import Point
from fractal.core.retention import HOUR_MS, Keep
from fractal.crypto.keys import DeviceKeys, app_keypair
from fractal.shell.entropy import SystemEntropy
from fractal.testing.context import real_context

T = TypeVar("T")
MIB = 1 << 20
GROUP, APP, VOLUME = "aa" * 16, "bb" * 8, "app"
OURS, FLOOR, RESTIC, BORG = "fractal", "btrfs send, zstd, age", "restic", "borg"
NEEDED = ("mkfs.btrfs", "btrfs", "zstd", "age", "age-keygen", "restic", "borg")
WALL_MS = 500_000 * HOUR_MS
"""A label for the first snapshot; ticks are a quarter of an hour apart, so that there is something to merge."""


@dataclass(frozen=True)
class Cost:
    """What one run took."""

    wall: float
    cpu: float
    stored: int = 0
    """Bytes by which the store grew."""
    peak: int = 0
    """Bytes of resident memory."""


LAUNCHER = """
import os, sys, time
began = time.monotonic()
pid = os.posix_spawnp("bash", ["bash", "-o", "pipefail", "-c", sys.argv[1]], os.environ)
_, status, used = os.wait4(pid, 0)
print(time.monotonic() - began, used.ru_utime + used.ru_stime, used.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""
"""A process is said to have used as much memory as the one that started it; so a small one does."""


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def shell(command: str, store: Path, env: dict[str, str] | None = None) -> Cost:
    """Run a command; by how much `store` grew."""
    before = size_of(store) if store.exists() else 0
    argv = [sys.executable, "-I", "-S", "-c", LAUNCHER, f"{{ {command}; }} > /dev/null"]
    done = subprocess.run(
        argv, env={**os.environ, **(env or {})}, check=False, capture_output=True, text=True
    )
    if done.returncode or not done.stdout:
        raise SystemExit(f"{command}: exit status {done.returncode}: {done.stderr[-500:]}")
    wall, cpu, peak = map(float, done.stdout.split())
    return Cost(wall, cpu, size_of(store) - before, int(peak) * 1024)


def called(*argv: str) -> str:
    """Run something that is not measured; what it says."""
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


# --- ours ----------------------------------------------------------------------------------------------------------------


def _used() -> float:
    found = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(used.ru_utime + used.ru_stime for used in found)


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM:"))) * 1024


class Ours:
    """One app's archive as the agent has it."""

    def __init__(self, archive: Archive, snapshotter: BtrfsSnapshotter, store: Path) -> None:
        self.archive = archive
        self.snapshotter = snapshotter
        self.store = store
        self.names: dict[Point, str] = {}
        self.last: Point | None = None

    def name_of(self, point: Point) -> str:
        """As on this device; of what comes from the store, a name that is not there."""
        return self.names.get(point, f"p-{point.number}")

    async def measured(self, work: Callable[[], Awaitable[T]]) -> tuple[Cost, T]:
        """What a call adds."""
        before = size_of(self.store)
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        wall, cpu = time.monotonic(), _used()
        result = await work()
        wall, cpu = time.monotonic() - wall, _used() - cpu
        return Cost(wall, cpu, size_of(self.store) - before, _peak()), result

    async def save(self) -> Cost:
        """A tick, or the first backup: unless nothing changed, snapshot, send, seal, upload, record."""
        return (await self.measured(self._save))[0]

    async def _save(self) -> None:
        if self.last is not None and await self.snapshotter.unchanged(VOLUME, self.names[self.last]):
            return
        name = f"s{len(self.names)}"
        await self.snapshotter.snapshot(VOLUME, name)
        record = await self.archive.write(
            1,
            snapshotter=self.snapshotter,
            volume=VOLUME,
            name=name,
            wall_ms=WALL_MS + len(self.names) * HOUR_MS // 4,
            parent=self.last,
            name_of=self.name_of,
        )
        self.last = record.point
        self.names[record.point] = name

    async def restore(self, volume: str) -> Cost:
        """The newest moment, from nothing."""
        last = self.last
        assert last is not None

        async def work() -> None:
            await self.archive.restore(
                last,
                snapshotter=self.snapshotter,
                volume=volume,
                name_of=lambda point: f"r{point.number}",
            )

        return (await self.measured(work))[0]

    async def verify(self) -> Cost:
        """Every byte."""
        cost, report = await self.measured(lambda: self.archive.verify(deep=True))
        if report.problems:
            raise SystemExit(f"the archive has problems: {report.problems}")
        return cost

    async def compact(self) -> tuple[Cost, int]:
        """Merge what is due, read it back, let go, and collect what would have waited a day; the merges that were made."""
        rules = Rules(epoch=1, bases={}, keep=Keep(ticks=1, hourly=1, daily=1, weekly=1))
        here = Here(
            snapshotter=self.snapshotter,
            volume=VOLUME,
            name_of=self.name_of,
            held=frozenset(self.names),
        )

        async def yes() -> bool:
            return True

        async def work() -> int:
            merged = 0
            while True:
                done = await self.archive.thin(rules, here, yes)
                merged += done.merged is not None
                if done.merged is None and done.refused is None:
                    break
            await self.archive.collect(rules, yes, grace=0.0)
            return merged

        return await self.measured(work)


@dataclass(frozen=True)
class Group:
    """What the devices of a measurement share: one device's keys will do for all, as nobody checks who owns what."""

    keys: DeviceKeys
    public: bytes
    secret: bytes
    store: Path

    @classmethod
    def made(cls, store: Path) -> Group:
        """With fresh keys."""
        entropy = SystemEntropy()
        return cls(DeviceKeys.generate(entropy), *app_keypair(entropy), store)


@asynccontextmanager
async def ours(folder: Path, size: int, group: Group) -> AsyncIterator[Ours]:
    """A device's archive over a pool of its own and the group's directory store."""
    room = f"{max(2, 8 * size * MIB >> 30)}G"
    async with (
        real_context(folder) as context,
        open_btrfs(context, BtrfsConfig(pool=folder / "pool", size=room)) as snapshotter,
        open_directory(context, DirectoryConfig(path=group.store)) as store,
    ):
        archive = Archive(
            group=GROUP,
            app=APP,
            store=store,
            keys=group.keys,
            app_keys=AppKeyring(generation=1, public=group.public, secrets={1: group.secret}),
            group_key=lambda _: (1, bytes(32)),
            sign_key_of=lambda _: group.keys.sign_public,
            clock=context.clock,
            entropy=context.entropy,
            workers=context.workers,
            spool=folder / "spool",
            notes=MemoryNotes(),
        )
        yield Ours(archive, snapshotter, group.store)


# --- the others -------------------------------------------------------------------------------------------------------------


class Floor:
    """What a person would put into a shell script."""

    def __init__(self, folder: Path) -> None:
        self.out = folder / "floor"
        self.out.mkdir()
        self.key = folder / "age.key"
        subprocess.run(["age-keygen", "-o", str(self.key)], check=True, capture_output=True)
        line = next(x for x in self.key.read_text().splitlines() if "public key" in x)
        self.public = line.split()[-1]
        self.files: list[Path] = []

    def save(self, root: Path, snapshots: Path) -> Cost:
        """A snapshot, and what changed since the one before."""
        number = len(self.files)
        file, snapshot = self.out / str(number), snapshots / str(number)
        self.files.append(file)
        against = f"-p {snapshots / str(number - 1)}" if number else ""
        return shell(
            f"btrfs -q subvolume snapshot -r {root} {snapshot}"
            f" && btrfs send -q {against} {snapshot} | zstd -3 -q -c | age -r {self.public} > {file}; sync {file}",
            self.out,
        )

    def read(self, into: Path | None) -> Cost:
        """All of it, in order: into a folder, or only looked at."""
        target = f"btrfs receive -q {into}" if into is not None else "cat > /dev/null"
        lines = [f"age -d -i {self.key} {f} | zstd -d -q -c | {target}" for f in self.files]
        sync = f" && btrfs filesystem sync {into}" if into is not None else ""
        return replace(shell(" && ".join(lines) + sync, self.out), stored=0)


class Others:
    """restic and borg, each with a repository of its own; they read the live volume, which nobody writes to meanwhile."""

    def __init__(self, folder: Path, source: Path) -> None:
        self.source = source
        self.folder = folder
        self.env = {
            RESTIC: {
                "RESTIC_REPOSITORY": str(folder / "restic"),
                "RESTIC_PASSWORD": "x" * 20,
                "RESTIC_CACHE_DIR": str(folder / "restic-cache"),
            },
            BORG: {
                "BORG_REPO": str(folder / "borg"),
                "BORG_PASSPHRASE": "x" * 20,
                "BORG_BASE_DIR": str(folder / "borg-base"),
            },
        }
        self.count = 0
        self.run(RESTIC, "restic init --repository-version 2")
        self.run(BORG, "borg init -e repokey-blake2")

    def run(self, tool: str, command: str) -> Cost:
        """Run one of its commands."""
        return shell(command, self.folder / tool, self.env[tool])

    def save(self) -> dict[str, Cost]:
        """Back up what is there now."""
        self.count += 1
        return {
            RESTIC: self.run(RESTIC, f"restic backup -q {self.source}"),
            BORG: self.run(BORG, f"cd {self.source} && borg create -C zstd,3 ::{self.count} ."),
        }

    def restore(self, into: Path) -> dict[str, Cost]:
        """The newest."""
        made = {}
        for tool, command in (
            (RESTIC, f"restic restore -q latest --target {into}/restic"),
            (BORG, f"mkdir {into}/borg && cd {into}/borg && borg extract ::{self.count}"),
        ):
            made[tool] = replace(self.run(tool, f"{command} && btrfs filesystem sync {into}"), stored=0)
            shutil.rmtree(into / tool)
        return made

    def verify(self) -> dict[str, Cost]:
        """Every byte."""
        return {
            RESTIC: self.run(RESTIC, "restic check -q --read-data"),
            BORG: self.run(BORG, "borg check --verify-data"),
        }

    def compact(self) -> dict[str, Cost]:
        """Keep the newest and make room."""
        return {
            RESTIC: self.run(RESTIC, "restic forget -q --keep-last 2 --prune"),
            BORG: self.run(BORG, "borg prune --keep-last 2 && borg compact"),
        }


# --- the run -----------------------------------------------------------------------------------------------------------------


def median(costs: Sequence[Cost]) -> Cost:
    """Each figure's median."""
    fields = zip(*((c.wall, c.cpu, c.stored, c.peak) for c in costs), strict=True)
    wall, cpu, stored, peak = (statistics.median(values) for values in fields)
    return Cost(wall, cpu, int(stored), int(peak))


def table(title: str, rows: dict[str, Cost]) -> None:
    """As Markdown: every row, and how much of it ours is."""
    print(f"\n### {title}\n\n| | wall s | CPU s | stored MB | peak MB | ours: wall x | CPU x | bytes x |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    mine = rows[OURS]
    for name, cost in rows.items():
        cells = [f"{cost.wall:.3f}", f"{cost.cpu:.3f}", f"{cost.stored / 1e6:.2f}", f"{cost.peak / 1e6:.0f}"]
        pairs = ((mine.wall, cost.wall), (mine.cpu, cost.cpu), (mine.stored, cost.stored))
        cells += ["" if name == OURS or not b or not a else f"{a / b:.3g}" for a, b in pairs]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


async def run(folder: Path, options: argparse.Namespace) -> None:
    """Everything, on one volume."""
    async with ours(folder, options.size, Group.made(folder / "ours")) as mine:
        root = await mine.snapshotter.create_root(VOLUME)
        maker = str(Path(__file__).parent / "volume_tree_data.py")
        files = called(sys.executable, maker, str(root), str(options.size))
        called("btrfs", "filesystem", "sync", str(root))
        print(f"{files} small files and three SQLite files, {size_of(root) / 1e6:.0f} MB; {os.cpu_count()} processors, "
              f"load {os.getloadavg()[0]:.1f}")  # fmt: skip
        floor, others = Floor(folder), Others(folder, root)

        snapshots = await mine.snapshotter.create_root("floor")

        async def save() -> dict[str, Cost]:
            """The same state by both; who comes first pays for what is not on the disk yet, so they take turns."""
            if len(floor.files) % 2:
                made = {FLOOR: floor.save(root, snapshots)}
                return {OURS: await mine.save(), **made}
            return {OURS: await mine.save(), FLOOR: floor.save(root, snapshots)}

        table("Full backup", {**await save(), **others.save()})
        ticks: dict[str, list[Cost]] = {}
        for number in range(options.ticks):
            change_tree(root, options.tick * MIB, number)
            rows = await save()
            if number < options.slow:
                rows |= others.save()
            for name, cost in rows.items():
                ticks.setdefault(name, []).append(cost)
        table(f"Tick of {options.tick} MB", {name: median(costs) for name, costs in ticks.items()})
        idle = [await save() for _ in range(3)]
        rows = {name: median([row[name] for row in idle]) for name in idle[0]}
        table("Idle tick", {**rows, **others.save()})
        back = folder / "back"
        async with pool_folder(mine, back) as into:
            restored = {OURS: replace(await mine.restore("restored"), stored=0)}
            same(root, (await mine.snapshotter.snapshots("restored"))[-1].path)
            for snapshot in await mine.snapshotter.snapshots("restored"):
                await mine.snapshotter.delete("restored", snapshot.name)
            restored[FLOOR] = floor.read(into)
            for child in sorted(into.iterdir()):
                called("btrfs", "-q", "subvolume", "delete", str(child))
            table("Restore of the newest", {**restored, **others.restore(into)})
        table("Verify every byte", {OURS: await mine.verify(), FLOOR: floor.read(None), **others.verify()})
        cost, merged = await mine.compact()
        table(f"Compaction (ours: {merged} merges, read back)", {OURS: cost, **others.compact()})
        await mine.verify()


@asynccontextmanager
async def pool_folder(mine: Ours, name: Path) -> AsyncIterator[Path]:
    """A folder on the same btrfs that restores go to."""
    path = (await mine.snapshotter.create_root("back")) / name.name
    path.mkdir()
    yield path


def same(one: Path, other: Path) -> None:
    """Ends the run if two trees are not equal."""
    if subprocess.run(["diff", "-r", str(one), str(other)], check=False).returncode:
        raise SystemExit(f"{other} is not what was saved")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=2400, metavar="MB", help="size of the volume")
    parser.add_argument(
        "--tick", type=int, default=20, metavar="MB", help="bytes that change between snapshots"
    )
    parser.add_argument("--ticks", type=int, default=13, help="ticks for ours and the floor")
    parser.add_argument("--slow", type=int, default=3, help="of these, ticks for restic and borg")
    parser.add_argument(
        "--dir", type=Path, default=None, help="folder for scratch files (six times the size)"
    )
    options = parser.parse_args()
    check_root(NEEDED)
    with scratch(options.dir) as folder:
        asyncio.run(run(folder, options))


def check_root(tools: Sequence[str]) -> None:
    """Ends the program, with what to do, if it cannot measure here."""
    if missing := [tool for tool in tools if shutil.which(tool) is None]:
        raise SystemExit(
            f"not here: {', '.join(missing)}: apt install btrfs-progs zstd age restic borgbackup"
        )
    if os.geteuid() != 0:
        raise SystemExit("making a btrfs needs root")


@contextmanager
def scratch(below: Path | None) -> Iterator[Path]:
    """A folder that goes afterwards, with whatever was mounted in it."""
    folder = Path(tempfile.mkdtemp(prefix="fractal-bench-", dir=below))
    try:
        yield folder
    finally:
        mounts = [line.split(" ")[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for mount in sorted((m for m in mounts if m.startswith(f"{folder}/")), reverse=True):
            subprocess.run(["umount", mount], check=False)
        with suppress(OSError):
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
