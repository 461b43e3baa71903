"""The demo ends what it started, and nobody else; it empties its own folder, and no other."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fractal.demo import marks
from fractal.demo.marks import Ground, NotOurs
from fractal.guard.processes import GUARD_MARK, scan

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]
PROGRAM = f"""
import subprocess, time
child = subprocess.Popen({SLEEP!r}, env={{}}, start_new_session=True, stdout=subprocess.DEVNULL)
print(child.pid, flush=True)
time.sleep(600)
"""
FORK = [sys.executable, "-c", PROGRAM]


@contextmanager
def running(*argv: str, env: dict[str, str], cwd: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(argv, env=env, cwd=cwd, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_only_marked_processes_and_what_is_below_them_die(tmp_path: Path) -> None:
    word, state = marks.new_word(), tmp_path / "kitchen" / "state"
    folder = marks.guard_folder(state)
    folder.mkdir(parents=True)
    state.joinpath("agent.log").write_text("")
    mine = {marks.WORD: f"{word}:kitchen"}
    app = {GUARD_MARK: str(folder)}
    bystander = {"WATCHED": str(folder), marks.WORD: f"{marks.new_word()}:kitchen"}
    with (
        running(*FORK, env=mine) as agent,
        running(*SLEEP, env=app) as served,
        running(*SLEEP, str(folder), env=bystander, cwd=folder) as shell,
        running(*SLEEP, env={marks.WORD: f"{word}:attic"}) as other,
    ):
        assert agent.stdout is not None
        child = int(agent.stdout.readline())
        assert {p.pid for p in marks.ours(scan(), word, "kitchen", state)} == {agent.pid, child, served.pid}
        assert marks.end(word, {"kitchen": state}).processes == 3
        assert (agent.wait(10), served.wait(10)) == (-9, -9)
        assert not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text()
        assert shell.poll() is None
        assert other.poll() is None


def test_guards_are_known_by_their_exact_folder(tmp_path: Path) -> None:
    folder = tmp_path / "guard"
    program = "import time; time.sleep(600)"
    with (
        running(sys.executable, "-c", program, "-m", "fractal.guard", "--dir", str(folder), env={}) as guard,
        running(sys.executable, "-c", program, "-m", "fractal.guard", "--dir", f"{folder}2", env={}) as other,
        running(sys.executable, "-c", program, str(folder), env={}) as reader,
    ):
        until = time.monotonic() + 10
        while not marks.guards(guard.pid, folder) and time.monotonic() < until:
            time.sleep(0.01)  # between fork and exec its arguments are ours
        assert marks.guards(guard.pid, folder)
        assert not marks.guards(other.pid, folder)
        assert not marks.guards(reader.pid, folder)


def test_somebody_elses_folder_is_refused_untouched(tmp_path: Path) -> None:
    tmp_path.joinpath("letter").write_text("dear")
    with pytest.raises(NotOurs, match="nothing was touched"):
        Ground(tmp_path).take()
    assert [p.name for p in tmp_path.iterdir()] == ["letter"]


def test_a_folder_reached_by_a_link_is_refused(tmp_path: Path) -> None:
    tmp_path.joinpath("real").mkdir()
    tmp_path.joinpath("link").symlink_to("real")
    with pytest.raises(NotOurs, match="not a folder"):
        Ground(tmp_path / "link").take()


def test_a_second_demo_in_one_folder_is_refused(tmp_path: Path) -> None:
    ground = Ground(tmp_path / "run")
    ground.take()
    with pytest.raises(NotOurs, match="another demo runs"):
        Ground(tmp_path / "run").take()
    ground.leave(keep=False)
    assert not (tmp_path / "run").exists()


def test_an_earlier_demos_folder_is_emptied_and_what_it_left_is_ended(tmp_path: Path) -> None:
    first = Ground(tmp_path / "run")
    first.take()
    first.folder.joinpath("kitchen", f"state-{first.word}").mkdir(parents=True)
    with running(*SLEEP, env={**os.environ, marks.WORD: f"{first.word}:kitchen"}) as left:
        first.leave(keep=True)  # as after a kill: the lock goes with the process
        second = Ground(tmp_path / "run")
        second.take()
        assert left.wait(10) == -9
    assert second.ended == 1
    assert second.word != first.word
    assert [p.name for p in second.folder.iterdir()] == [marks.MARKER]
    second.leave(keep=False)
