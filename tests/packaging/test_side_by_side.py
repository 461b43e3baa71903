"""The parts of `make test` beside each other: their failures count, and an interrupt reaches them in time to clean up."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

PROGRAM = Path(__file__).resolve().parents[2] / "contrib/ci/side-by-side"
PATIENCE = 60.0


def begin(folder: Path, recipes: str, *parts: str) -> subprocess.Popen[str]:
    """Make parts of a Makefile of the test's own."""
    (folder / "Makefile").write_text(recipes)
    make = folder / "make"
    make.write_text(f'#!/bin/sh\nexec make --file={folder}/Makefile "$@"\n')
    make.chmod(0o755)
    environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    return subprocess.Popen(
        [PROGRAM, *parts],
        env={**environment, "MAKE": str(make)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_part_that_fails_fails_the_whole_and_stops_no_other(tmp_path: Path) -> None:
    running = begin(tmp_path, "bad:\n\t@false\ngood:\n\t@sleep 1; echo was made\n", "bad", "good")
    said, _ = running.communicate(timeout=PATIENCE)
    assert running.returncode != 0 and "was made" in said


def test_an_interrupt_lets_what_runs_clean_up(tmp_path: Path) -> None:
    began, cleaned = tmp_path / "began", tmp_path / "cleaned"
    program = tmp_path / "part.py"
    program.write_text(
        "import pathlib, time\n"
        "try:\n"
        f"    pathlib.Path({str(began)!r}).touch()\n"
        "    time.sleep(600)\n"
        "finally:\n"
        f"    pathlib.Path({str(cleaned)!r}).touch()\n"
    )
    running = begin(tmp_path, f"part:\n\t@python3 {program}\n", "part")
    try:
        end = time.monotonic() + PATIENCE
        while not began.exists():
            assert time.monotonic() < end
            time.sleep(0.02)
    finally:
        running.send_signal(signal.SIGTERM)
        running.communicate(timeout=PATIENCE)
    assert running.returncode == 130 and cleaned.exists()
