"""The past on a terminal: a timeline, listings, copies, differences."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fractal.api.errors import ExitCode
from fractal.cli.main import main
from fractal.testing.control import SampleAgent

DAY = 86_400_000
NOON = 1_780_000_000_000


Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command: its exit code, and all that it said."""

    def run(*words: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["homeserver", "--config", str(config), *words])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out + said.err

    return run


@pytest.fixture
def moment(tmp_path: Path, agent: SampleAgent) -> Path:
    """A folder that the agent says holds a moment."""
    root = tmp_path / "moment"
    (root / "data" / "deep").mkdir(parents=True)
    (root / "data" / "letter.txt").write_text("dear")
    (root / "data" / "evil\x1b[2J").write_text("")
    (root / "data" / "link").symlink_to("/etc/passwd")
    agent.results["snapshot.open"] = {"moment": "1.4", "wall_ms": NOON, "path": str(root), "for_s": 3600.0}
    return root


def test_a_timeline_tells_each_day_once(run: Run, agent: SampleAgent) -> None:
    one = {
        "moment": "1.1",
        "wall_ms": NOON,
        "device": "Attic",
        "bytes": 2048,
        "level": 0,
        "pinned": False,
        "branch": False,
    }
    agent.results["snapshot.list"] = {
        "snapshots": [
            {**one, "level": 2, "pinned": True},
            {**one, "moment": "1.2", "wall_ms": NOON + 1000},
            {**one, "moment": "1.3", "wall_ms": NOON + DAY, "branch": True},
        ]
    }
    code, shown = run("snapshot", "list", "cal")
    lines = shown.splitlines()
    assert code == 0 and lines[0].split() == ["DAY", "TIME", "MOMENT", "DEVICE", "STORED", "REMARKS"]
    assert lines[1].endswith("pinned, end of a day") and lines[3].endswith("branch")
    assert lines[1][:4] == "2026" and lines[2][:10].isspace() and lines[3][:4] == "2026"


def test_browsing_shows_names_that_no_terminal_obeys(run: Run, agent: SampleAgent, moment: Path) -> None:
    code, shown = run("snapshot", "browse", "cal", "data", "--at", "yesterday 10:00")
    assert code == 0
    assert agent.last == ("snapshot.open", {"app": "cal", "at": "yesterday 10:00"})
    assert "letter.txt" in shown and "deep/" in shown and "link -> /etc/passwd" in shown
    assert "\x1b" not in shown
    code, shown = run("snapshot", "browse", "cal", "data", "--json")
    found = json.loads(shown[shown.index("{") : shown.rindex("}") + 1])["entries"]
    assert [e["kind"] for e in found] == ["folder", "file", "file", "link"]
    code, shown = run("snapshot", "browse", "cal", "data/link/passwd")
    assert code != ExitCode.OK
    assert "root:" not in shown


def test_a_file_is_copied_out_and_nothing_is_overwritten(run: Run, moment: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy.txt"
    code, shown = run("snapshot", "copy", "cal", "data/letter.txt", str(target))
    assert (code, target.read_text()) == (0, "dear") and "1 copied." in shown
    target.write_text("mine")
    code, shown = run("snapshot", "copy", "cal", "data/letter.txt", str(target))
    assert code == ExitCode.CONFLICT and target.read_text() == "mine" and "nothing is overwritten" in shown


def test_two_moments_are_compared(run: Run, moment: Path) -> None:
    code, shown = run("snapshot", "diff", "cal", "--at", "2h")
    assert code == 0 and "Nothing changed." in shown


def test_a_folder_is_opened_for_a_while(run: Run, agent: SampleAgent, moment: Path) -> None:
    code, shown = run("snapshot", "open", "cal", "--at", "2 hours ago", "--for", "2")
    assert code == 0 and str(moment) in shown.splitlines()
    assert agent.last == ("snapshot.open", {"app": "cal", "at": "2 hours ago", "for_s": 7200.0})
