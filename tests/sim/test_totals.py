"""A long run: what it sums up, what it judges, and how it goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from fractal.sim.counting import TRANSITIONS
from fractal.sim.faults import KINDS
from fractal.sim.totals import FULL, Totals
from fractal.sim.world import Result, sweep

pytestmark = pytest.mark.timeout(1200)
ENOUGH = 10 * FULL


def reached() -> Totals:
    """A long run that missed nothing."""
    total = Totals(first=5, next=5 + FULL)
    total.kinds["hard"] = FULL
    total.counts.update(dict.fromkeys(TRANSITIONS, ENOUGH))
    total.counts.update({f"fault: {kind}": ENOUGH for kind in KINDS})
    total.counts["faults"] = ENOUGH
    total.takeovers = {
        "standard": Counter({"320": 98, "400": 2}),
        "standard, double": Counter({"600": 1}),
        "fast": Counter({"139": 100}),
    }
    return total


def test_a_run_that_reaches_every_goal_misses_none() -> None:
    assert reached().missed(5 + FULL) == []


def _violated(total: Totals) -> None:
    total.failed["7"] = "I1: two runners"


def _unreached(total: Totals) -> None:
    del total.counts["step: put an earlier moment in place"]


def _without_a_fault(total: Totals) -> None:
    del total.counts["fault: device leaves"]


def _few_faults(total: Totals) -> None:
    total.counts["faults"] = 4 * FULL


def _few_takeovers(total: Totals) -> None:
    total.counts.update({t: 1 - total.counts[t] for t in TRANSITIONS if t.startswith("take: ")})


def _slow_median(total: Totals) -> None:
    total.takeovers["fast"]["141"] = 101


def _slow_tail(total: Totals) -> None:
    total.takeovers["standard"]["421"] = 2


def _slow_double(total: Totals) -> None:
    total.takeovers["standard, double"]["751"] = 1


def _writes_when_idle(total: Totals) -> None:
    total.counts["idle entries"] = 1


def _not_done(total: Totals) -> None:
    total.next -= 1


@pytest.mark.parametrize(
    "spoil",
    [
        _violated, _unreached, _without_a_fault, _few_faults, _few_takeovers, _slow_median, _slow_tail, _slow_double,
        _writes_when_idle, _not_done,
    ],
)  # fmt: skip
def test_each_goal_can_be_missed(spoil: object) -> None:
    total = reached()
    assert callable(spoil)
    spoil(total)
    assert len(total.missed(5 + FULL)) == 1, total.missed(5 + FULL)


def test_of_a_few_seeds_only_violations_count() -> None:
    total = Totals(first=0, next=3)
    total.kinds["hard"] = 3
    assert total.missed(3) == []
    _violated(total)
    assert total.missed(3)


def test_a_note_brings_everything_back(tmp_path: Path) -> None:
    total, path = reached(), tmp_path / "sums.json"
    total.add(
        Result(
            seed=5 + FULL,
            kind="idle",
            violations=("I5: nothing runs",),
            timeline=(),
            faults=(),
            counts=Counter({"epochs": 3}),
            takeovers=(("fast", 12.34),),
            steps=1,
            seconds=60.0,
        )
    )
    total.save(path)
    assert Totals.load(path, 5) == total
    with pytest.raises(SystemExit, match="from seed 5"):
        Totals.load(path, 6)


def run(state: Path, seeds: int) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "fractal.sim",
        "--seeds",
        str(seeds),
        "--jobs",
        "2",
        "--state",
        str(state),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


def test_only_what_killed_processes_left_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fractal.sim.world.FOLDERS", tmp_path)
    gone = subprocess.Popen(["true"])
    gone.wait(timeout=60)
    left = [f"fractal-sim-{gone.pid}-x1", f"fractal-sim-{os.getpid()}-x2", "fractal-sim-x3", "other"]
    for name in left:
        (tmp_path / name).mkdir()
    sweep()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(left[1:])


def test_a_run_goes_on_where_it_ended_and_sums_up_the_same(tmp_path: Path) -> None:
    parts, whole = tmp_path / "parts.json", tmp_path / "whole.json"
    for seeds in (1, 3):
        done = run(parts, seeds)
        assert done.returncode == 0, done.stdout + done.stderr
    assert run(whole, 3).returncode == 0
    first, second = (json.loads(path.read_text(encoding="utf-8")) for path in (parts, whole))
    for timed in ("cpu", "wall"):
        assert first.pop(timed) > 0 and second.pop(timed) > 0
    assert first == second
    again = run(whole, 3)
    assert again.returncode == 0 and again.stdout.startswith("3 seeds"), again.stdout
