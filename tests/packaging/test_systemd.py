"""The files for systemd: systemd itself accepts them, and they agree with what agent and guard rely on."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

CONTRIB = Path(__file__).resolve().parents[2] / "contrib"
UNIT = CONTRIB / "systemd" / "homeserver.service"
WALLS = CONTRIB / "systemd" / "homeserver.service.d" / "10-unprivileged.conf"


def settings(path: Path) -> dict[str, list[str]]:
    """Every `Key=value` of a unit file, by key, in order."""
    found: dict[str, list[str]] = defaultdict(list)
    for line in path.read_text().splitlines():
        if line and not line.startswith(("#", "[")):
            key, equals, value = line.partition("=")
            assert equals and re.fullmatch("[A-Za-z]+", key), line
            found[key].append(value)
    return found


def test_agent_alone_is_signalled_and_has_time_to_hand_over() -> None:
    from fractal.agent.agent import HANDING_OVER, RESTING, SAYING_AWAY

    unit = settings(UNIT)
    assert unit["Type"] == ["notify"]
    assert unit["KillMode"] == ["process"]
    assert unit["OOMPolicy"] == ["continue"]
    assert unit["RuntimeDirectoryPreserve"] == ["yes"]
    assert unit["ExecStartPre"] == ["/usr/bin/homeserver config check"]
    assert int(unit["TimeoutStopSec"][0]) > HANDING_OVER + RESTING + SAYING_AWAY
    assert int(unit["WatchdogSec"][0]) > 0


def test_walls_leave_guard_and_apps_what_they_need() -> None:
    walls = settings(WALLS)
    # Each of these would break something that outlives the agent, or the guard's work; the file says what.
    for key in ("PrivateTmp", "ProtectControlGroups", "ProcSubset", "MemoryDenyWriteExecute"):
        assert key not in walls
        assert f"Not {key}" in WALLS.read_text()
    assert walls["User"] == ["homeserver"]
    assert walls["NoNewPrivileges"] == ["yes"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("walled", [False, True])
def test_systemd_accepts_the_unit(tmp_path: Path, walled: bool) -> None:
    program = tmp_path / "homeserver"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / "homeserver.service"
    text = UNIT.read_text().replace("/usr/bin/homeserver", str(program))
    text = "\n".join(line for line in text.splitlines() if not line.startswith("Documentation"))
    if walled:
        text += "\n" + WALLS.read_text()
    unit.write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--recursive-errors=no", "--man=no", str(unit)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert str(unit) not in done.stderr and "Unknown" not in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("tool", "option", "file"),
    [
        ("systemd-sysusers", "--dry-run", "sysusers.d/homeserver.conf"),
        ("systemd-tmpfiles", "--create", "tmpfiles.d/homeserver.conf"),
    ],
)
def test_systemd_accepts_users_and_folders(tmp_path: Path, tool: str, option: str, file: str) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    if tool == "systemd-tmpfiles" and os.geteuid() != 0:
        pytest.skip("giving folders to another user needs root")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "group").write_text("root:x:0:\nhomeserver:x:999:\n")
    (tmp_path / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    done = subprocess.run(
        [tool, f"--root={tmp_path}", option, str(CONTRIB / file)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr or tool == "systemd-sysusers", done.stderr
