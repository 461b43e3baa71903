"""A type checker flags a wrong backend, or a wrong config, at the line of its record."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
SAMPLE = "tests/typing/records.py"


def test_mypy_flags_exactly_the_bad_records() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--hide-error-context", SAMPLE],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.stderr == ""
    found = {int(n) for n in re.findall(rf"^{re.escape(SAMPLE)}:(\d+): error:", done.stdout, re.MULTILINE)}
    lines = (ROOT / SAMPLE).read_text().splitlines()
    bad = {number for number, line in enumerate(lines, 1) if line.endswith("# BAD")}
    assert len(bad) >= 12
    assert found == bad, done.stdout
