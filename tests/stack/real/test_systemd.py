"""The agent as a person with systemd has it: the unit on a machine that Debian's systemd booted, by the documents' commands."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.docs.markdown import blocks
from tests.stack.bed import GROUP, GUARD, UNDERTAKER, Bed, state_of, until
from tests.stack.real.booted import CHECKOUT, SEEN, VENV, Booted, booted, missing

UNIT = "homeserver"
PATIENCE = 60.0
WATCHDOG = 12
"""Seconds. Longer than a grant of the `fast` timers lasts, so that the guard is seen to act before systemd does."""
FREEZER_TESTS = ("tests/unit/guard/test_cgroups.py", "plugins/fractal-containers/tests/test_cgroup.py")


@pytest.fixture
def machine() -> Iterator[Booted]:
    """A machine that systemd has booted; skips where there can be none, fails instead with CI=true."""
    if reason := missing():
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    with booted() as made:
        yield made


@dataclass(frozen=True)
class Home:
    """The unit on a machine, and its one app."""

    machine: Booted

    def set_up(self, word: str) -> None:
        """Do what the page tells a person to do, in the one block that has this word."""
        (block,) = [b for b in blocks(CHECKOUT / "docs/how-to/systemd.md") if word in b.text]
        self.machine.run("sh", "-exc", block.text, cwd=SEEN)

    def drop_in(self, name: str, text: str) -> None:
        """What `systemctl edit` writes."""
        folder = self.machine.root / f"etc/systemd/system/{UNIT}.service.d"
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.conf").write_text(text)
        self.machine.run("systemctl", "daemon-reload")

    def install(self, folder: Path) -> None:
        """A group of this device alone, and an app in it."""
        (self.machine.root / "root/ledger.yml").write_text(Bed(folder).manifest().read_text())
        self.machine.run("homeserver", "group", "create", GROUP, "--timers", "fast")
        store = ["directory", "path=/var/lib/homeserver/shelf"]
        self.machine.run(
            "install", "--directory", "--owner=" + (self.show("User") or "root"), store[1].partition("=")[2]
        )
        self.machine.run("homeserver", "store", "add", "Shelf", "--group", GROUP, *store)
        words = ["--group", GROUP, "--device", "Kitchen", "--interval", "10", "--wait", "60"]
        self.machine.run("homeserver", "app", "install", "/root/ledger.yml", *words)

    def show(self, name: str) -> str:
        """A property of the unit."""
        return self.machine.run("systemctl", "show", f"--property={name}", "--value", UNIT)

    def signal(self, name: str) -> None:
        """Send the agent, and nothing else of the unit, a signal."""
        self.machine.run("systemctl", "kill", "--kill-whom=main", f"--signal={name}", UNIT)

    def app(self) -> int:
        """The app's process; 0 if there is none."""
        return next(iter(self.machine.pids("/ledger ")), 0)

    def guards(self) -> set[int]:
        """Guard and undertaker."""
        return {*self.machine.pids(GUARD), *self.machine.pids(UNDERTAKER)}

    def ask(self, method: str = "GET") -> str:
        """The app's answer. Raises AssertionError."""
        words = Path(f"/proc/{self.app()}/cmdline").read_text().split("\0")
        url = f"http://127.0.0.1:{words[3]}/"
        code = "import sys, urllib.request as r; q = r.Request(sys.argv[1], method=sys.argv[2]);"
        return self.machine.run(
            "python3", "-c", f"{code} print(r.urlopen(q, timeout=5).read().decode())", url, method
        )

    def again(self, restarts: int) -> None:
        """Wait until systemd has restarted the agent that often, and it is ready."""
        until(
            lambda: int(self.show("NRestarts")) >= restarts and self.show("SubState") == "running",
            PATIENCE,
            f"restart {restarts}",
        )

    def runs(self) -> None:
        """Wait until the app answers."""
        until(lambda: bool(self.ask()), PATIENCE, "the app answers")


@pytest.mark.timeout(1500)  # with the making of the tree that it boots, once
def test_agent_guard_and_app_under_systemd(machine: Booted, tmp_path: Path) -> None:
    home = Home(machine)
    home.set_up("homeserver agent install --dry-run")
    home.drop_in("quick", f"[Service]\nWatchdogSec={WATCHDOG}\n")
    assert home.show("ActiveState") == "active"
    stays_unready_while_the_agent_is(home)
    home.install(tmp_path)
    assert home.ask("POST") == "0"
    until(
        lambda: "1 group(s), 1 app(s) here" in machine.run("systemctl", "status", "--no-pager", UNIT),
        PATIENCE,
        "the status line tells of the app",
    )
    app, guards = home.app(), home.guards()
    assert len(guards) == 2

    # A crash: another agent, the same guard and app.
    home.signal("KILL")
    home.again(1)
    assert (home.app(), home.guards()) == (app, guards)
    assert home.ask("POST") == "1"

    # An agent that hangs: the guard freezes the app, the watchdog ends the agent, the next one lets the app go on.
    home.signal("STOP")
    until(lambda: state_of(app) == "T", PATIENCE, "the guard freezes the app")
    assert home.show("NRestarts") == "1", "the guard acts before the watchdog"
    home.again(2)
    home.runs()
    assert (home.app(), home.guards()) == (app, guards)
    assert "Watchdog timeout" in machine.run("journalctl", "--no-pager", f"--unit={UNIT}")
    assert home.ask("POST") == "2"

    # Orderly ends: the app is stopped, and nothing but a guard that keeps nothing is left.
    machine.run("systemctl", "restart", UNIT)
    home.runs()
    assert home.app() != app
    assert home.ask("POST") == "3"
    machine.run("systemctl", "stop", UNIT)
    assert home.show("Result") == "success"
    assert set(machine.pids("/var/lib/homeserver")) == home.guards() == guards

    # The next boot begins with all of it.
    machine.run("systemctl", "start", UNIT)
    machine.reboot()
    assert home.show("ActiveState") == "active"
    home.runs()
    assert home.ask().split() == ["0", "1", "2", "3"]


def stays_unready_while_the_agent_is(home: Home) -> None:
    """Stop the agent's process in the middle of its start: the unit must not count as started."""
    home.machine.run("systemctl", "stop", UNIT)
    home.machine.run("systemctl", "start", "--no-block", UNIT)
    until(lambda: home.show("MainPID") != "0", PATIENCE, "the agent is started")
    home.signal("STOP")
    assert home.show("SubState") == "start"
    assert not home.machine.run("systemctl", "is-active", "--quiet", UNIT, check=False)
    home.signal("CONT")
    until(lambda: home.show("SubState") == "running", PATIENCE, "the agent is ready")


@pytest.mark.timeout(1500)  # with the making of the tree that it boots, once
def test_agent_without_rights_behind_walls(machine: Booted, tmp_path: Path) -> None:
    home = Home(machine)
    home.set_up("10-unprivileged.conf")
    home.install(tmp_path)
    assert home.ask("POST") == "0"
    app, guards = home.app(), home.guards()
    assert Path(f"/proc/{app}").stat().st_uid == Path(f"/proc/{min(guards)}").stat().st_uid != 0
    home.signal("KILL")
    home.again(1)
    assert (home.app(), home.guards()) == (app, guards)
    home.signal("STOP")
    until(lambda: state_of(app) == "T", PATIENCE, "the guard freezes the app")
    home.signal("KILL")
    home.again(2)
    home.runs()
    assert home.ask("POST") == "1"
    machine.run("systemctl", "stop", UNIT)
    assert not home.app()


@pytest.mark.timeout(1500)  # with the making of the tree that it boots, once
def test_freezing_where_there_is_nothing_but_cgroup_v2(machine: Booted) -> None:
    assert machine.run("stat", "--file-system", "--format=%T", "/sys/fs/cgroup") == "cgroup2fs"
    words = ["python3", "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", *FREEZER_TESTS]
    said = machine.run(f"{VENV}/bin/{words[0]}", *words[1:], timeout=240, cwd=SEEN)
    skipped = [line for line in said.splitlines() if line.startswith("SKIPPED")]
    assert skipped and all("v1" in line or "version 1" in line for line in skipped), said
    passed = re.search(r"(\d+) passed", said)
    assert passed and int(passed[1]) >= 12, said
