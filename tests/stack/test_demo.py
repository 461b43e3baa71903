"""`make demo` holds its promises, and would not if a part were missing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fractal.demo.marks import MARKER
from fractal.testing.leftovers import all_pids, mentions

SABOTAGE = Path(__file__).parent / "sabotage"


def play(folder: Path, *options: str, sabotage: str = "") -> tuple[int, str]:
    """Play the demo in a process of its own, with a part of it broken from outside; exit code and output."""
    env = dict(os.environ)
    if sabotage:
        env["PYTHONPATH"] = os.pathsep.join([str(SABOTAGE / sabotage), env.get("PYTHONPATH", "")])
    with subprocess.Popen(
        [sys.executable, "-m", "fractal.demo", "--folder", str(folder), *options],
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as demo:
        try:
            output, _ = demo.communicate(timeout=800)
        except BaseException:
            demo.terminate()  # killed, it would leave its agents behind
            demo.communicate(timeout=60)
            raise
    print(output)
    return demo.returncode, output


@pytest.mark.timeout(900)
def test_every_promise_holds(tmp_path: Path) -> None:
    code, output = play(tmp_path / "demo")
    assert code == 0, output[-3000:]
    assert "Every promise held." in output
    assert not (tmp_path / "demo").exists()


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("sabotage", "acts", "broken"),
    [
        ("guard_off", "2", "never two running copies"),
        ("fence_off", "", "the store can fence"),
        ("sealing_off", "", "the canary is in none of"),
    ],
)
def test_it_fails_when_a_part_is_missing(tmp_path: Path, sabotage: str, acts: str, broken: str) -> None:
    code, output = play(tmp_path / "demo", "--acts", acts, sabotage=sabotage)
    assert code == 1, output[-3000:]
    promises = output.partition("BROKEN PROMISES:")[2]
    assert broken in promises, promises


@pytest.mark.timeout(400)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_told_to_end_it_leaves_nothing_and_harms_nobody(tmp_path: Path, number: signal.Signals) -> None:
    folder = tmp_path / "demo"
    with subprocess.Popen(
        [sys.executable, "-m", "fractal.demo", "--folder", str(folder), "--acts", ""],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as demo:
        assert demo.stdout is not None
        lines = iter(demo.stdout)
        assert any("agents run" in line for line in lines)
        word = json.loads((folder / MARKER).read_text())["word"]
        started = [pid for pid in all_pids() if mentions(pid, word)]
        assert len(started) >= 6  # an agent, its guard and the guard's undertaker, three times
        with subprocess.Popen(
            ["tail", "-f", str(folder / "kitchen" / "agent.log")],
            cwd=folder / "kitchen",
            stdout=subprocess.DEVNULL,
        ) as reader:
            try:
                demo.send_signal(number)
                rest = "".join(lines)
                assert demo.wait(120) == 128 + number, rest
                assert f"ended by {number.name}" in rest
                assert [pid for pid in started if mentions(pid, word)] == [], rest
                assert reader.poll() is None
            finally:
                reader.kill()
