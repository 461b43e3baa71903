"""What an idle device costs: CPU seconds per minute and memory (PSS) of an agent, its guard and its idle apps, one or many.

    python contrib/bench/idle.py [SECONDS [APPS]]

The group's timers are those of the profile `standard`, each app is a small web server that nobody asks anything, and its
snapshots are due every minute. PSS counts each shared page once, in parts; /proc/PID/smaps_rollup gives it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fractal.demo.devices import DemoDevice, kill
from fractal.testing.agents import manifest, service

SETTLING = 135.0
"""Seconds between the last app's becoming healthy and the measurement: its archive is looked after for the first time two minutes later."""
INTERVAL = "30s"
"""Between two checks of an app's health: Compose's own default."""
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Use:
    """What the processes of one kind have used."""

    processes: int
    cpu: float
    """Seconds since each began, without children that it waited for."""
    pss: int
    """KiB."""


def main() -> int:
    """Print a table."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    apps = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    with tempfile.TemporaryDirectory() as name, device(Path(name), apps) as here:
        print(f"settling for {SETTLING:.0f} s, then measuring for {seconds:.0f} s", flush=True)
        time.sleep(SETTLING)
        before, begun = uses(here), time.monotonic()
        time.sleep(seconds)
        after, took = uses(here), time.monotonic() - begun
    print(f"{'':10} {'processes':>9} {'CPU s/min':>10} {'PSS MiB':>8}")
    for kind, use in after.items():
        cpu = (use.cpu - before[kind].cpu) * 60 / took
        print(f"{kind:10} {use.processes:9} {cpu:10.3f} {use.pss / 1024:8.1f}")
    return 0


@contextlib.contextmanager
def device(folder: Path, apps: int) -> Iterator[DemoDevice]:
    """A running agent with one group and so many idle apps; all of it ends with the context."""
    for part in ("log", "store", "envs"):
        (folder / "shared" / part).mkdir(parents=True)
    made = DemoDevice("Bench", folder / "device", ("host",), folder / "shared")
    made.configure()
    app = folder / "app.yml"
    app.write_text(manifest(service(interval=INTERVAL)))
    try:
        made.start()
        made.run("group", "create", "Bench")
        made.run("store", "add", "Shelf", "directory", f"path={folder / 'shared' / 'store'}")
        for number in range(apps):
            made.run("app", "install", str(app), "--as", f"idle-{number}")
        yield made
    finally:
        made.stop()
        for pid in made.processes():
            kill(pid, signal.SIGKILL)


def uses(here: DemoDevice) -> dict[str, Use]:
    """Agent, guard (with undertaker and keepers) and app, by what each process is."""
    found: dict[str, list[int]] = {"agent": [], "guard": [], "app": []}
    agent = here.agent.pid if here.agent is not None else 0
    for pid in here.processes():
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{pid}/comm").read_text().strip()
            kind = "agent" if pid == agent else "guard" if command.startswith("fractal-") else "app"
            found[kind].append(pid)
    return {kind: Use(len(pids), sum(map(cpu, pids)), sum(map(pss, pids))) for kind, pids in found.items()}


def cpu(pid: int) -> float:
    """Seconds of user and system time."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS
    return 0.0


def pss(pid: int) -> int:
    """Proportional set size in KiB."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    return 0


if __name__ == "__main__":
    sys.exit(main())
