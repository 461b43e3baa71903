"""CI runs every test: a tool that is missing there is a failure, and is told elsewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parents[2] / "conftest.py"
TESTS = """
import pytest

def test_runs(): pass

def test_lacks_a_tool(): pytest.skip("age is not installed")

@pytest.mark.skipif(True, reason="no network")
def test_lacks_a_network(): pass

def test_does_not_apply(): pytest.skip("the backend does not declare SupportsClone")

@pytest.mark.xfail(reason="a known gap", strict=True)
def test_of_a_gap(): assert False
"""
MODULE = "import pytest\npytest.importorskip('a_library_that_nobody_has')\n"


def run(folder: Path, ci: str) -> str:
    shutil.copy(CONFTEST, folder)
    (folder / "test_some.py").write_text(TESTS)
    (folder / "test_module.py").write_text(MODULE)
    (folder / "pytest.ini").write_text("[pytest]\n")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-ra",
            "-p",
            "no:cacheprovider",
            "--continue-on-collection-errors",
        ],
        cwd=folder,
        env={**os.environ, "CI": ci},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == (1 if ci == "true" else 0), done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("ci", ["", "false"])
def test_a_developer_is_told_what_was_left_out(tmp_path: Path, ci: str) -> None:
    output = run(tmp_path, ci)
    assert "1 passed, 4 skipped, 1 xfailed" in output
    assert "age is not installed" in output and "a_library_that_nobody_has" in output


def test_ci_fails_but_for_what_cannot_apply(tmp_path: Path) -> None:
    output = run(tmp_path, "true")
    assert "1 failed, 1 passed, 1 skipped, 1 xfailed, 2 errors" in output
    for reason in ("age is not installed", "no network", "could not import 'a_library_that_nobody_has'"):
        assert f"skipped, which CI does not allow: {reason}" in output
