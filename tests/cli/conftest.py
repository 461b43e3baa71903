"""An agent that answers with documented, made-up results, and a configuration that leads to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fractal.testing.control import SampleAgent, serving_samples


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Path of a configuration of this test's own; nothing outside its folder is touched."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("HOMESERVER_CONFIG", raising=False)
    path = tmp_path / "config.toml"
    path.write_text('schema = 1\n[device]\nname = "Attic"\nstate_dir = "state"\nruntime_dir = "run"\n')
    (tmp_path / "run").mkdir()
    return path


@pytest.fixture
def agent(config: Path) -> Iterator[SampleAgent]:
    """An agent that listens where the configuration says."""
    with serving_samples(config.parent / "run" / "control.sock") as agent:
        yield agent
