"""Real Compose files, in a folder that is named by COMPOSE_FILES: how many are understood.

    COMPOSE_FILES=FOLDER python -m pytest -s tests/soak/test_real_files.py

A list `MANIFEST.tsv` beside them may say in its columns `file`, `compose_spec_schema` and `notable` which of them the
official schema takes (`valid`) and which are only parts of others (`service without image nor build`).
"""

from __future__ import annotations

import csv
import os
import time
from pathlib import Path

import pytest

from fractal.manifest import Checked, check

FOLDER = os.environ.get("COMPOSE_FILES", "")
GOAL = 0.97
pytestmark = pytest.mark.skipif(not FOLDER, reason="COMPOSE_FILES names no folder of Compose files")


def listed(folder: Path) -> dict[str, dict[str, str]]:
    """What is known of the files, by name."""
    table = folder / "MANIFEST.tsv"
    if not table.exists():
        return {}
    with table.open(encoding="utf-8", newline="") as file:
        return {row["file"]: row for row in csv.DictReader(file, delimiter="\t")}


def test_real_files_are_understood_or_refused_with_their_line() -> None:
    folder = Path(FOLDER)
    known = listed(folder)
    begin = time.process_time()
    found = {p.name: check(p.read_text(encoding="utf-8"), p.name) for p in sorted(folder.glob("*.y*ml"))}
    speed = len(found) / (time.process_time() - begin)
    invalid = {name for name, row in known.items() if row["compose_spec_schema"] != "valid"}
    parts = {name for name, row in known.items() if "service without image nor build" in row["notable"]}
    whole = {name: checked for name, checked in found.items() if name not in invalid | parts}
    refused = {name: checked for name, checked in whole.items() if checked.refused}
    for checked in refused.values():
        print("\n".join(f"{checked.source}:{f.line}: {f.key}: {f.text}" for f in checked.refused))
    understood = len(whole) - len(refused)
    print(f"{understood} of {len(whole)} understood; {speed:.0f} files a second")
    assert found and understood / len(whole) >= GOAL
    for name in (invalid | parts) & found.keys():
        assert found[name].refused, f"{name} is understood, and should not be"
    assert all(_has_lines(checked) for checked in found.values())


def _has_lines(checked: Checked) -> bool:
    return all(f.line > 0 and f.text for f in (*checked.refused, *checked.idle))
