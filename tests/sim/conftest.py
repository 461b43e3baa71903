"""Lets the tests name the modules beside them, as `tests.sim.broken`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
