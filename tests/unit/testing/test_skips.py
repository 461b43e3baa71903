"""CI runs every test: a tool that is missing there is a failure, and is told elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PROJECT = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
OPTIONS = PROJECT["tool"]["pytest"]["ini_options"]["addopts"]
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
SKIPS = "import pytest\ndef test_of_a_plugin(): pytest.skip('no engine')\n"


def run(folder: Path, ci: str) -> str:
    """Of tests that lie as ours do, with the options of ours."""
    for tree, name, text in (
        ("tests", "test_some.py", TESTS),
        ("plugins/one/tests", "test_module.py", MODULE),
    ):
        (folder / tree).mkdir(parents=True)
        (folder / tree / name).write_text(text)
    (folder / "plugins/one/tests/test_other.py").write_text(SKIPS)
    (folder / "pytest.ini").write_text(f"[pytest]\naddopts = {OPTIONS}\n")
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
            "tests",
            "plugins/one/tests",
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
    assert "1 passed, 5 skipped, 1 xfailed" in output
    assert "age is not installed" in output and "a_library_that_nobody_has" in output


def test_ci_fails_but_for_what_cannot_apply(tmp_path: Path) -> None:
    output = run(tmp_path, "true")
    assert "2 failed, 1 passed, 1 skipped, 1 xfailed, 2 errors" in output
    for reason in (
        "age is not installed",
        "no engine",
        "no network",
        "could not import 'a_library_that_nobody_has'",
    ):
        assert f"skipped, which CI does not allow: {reason}" in output
