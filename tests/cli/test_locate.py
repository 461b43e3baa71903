"""The command line finds the agent's socket without loading the configuration, and finds the same one as the agent."""

from __future__ import annotations

from pathlib import Path

import pytest

from fractal.api.errors import Misconfigured, NotFound
from fractal.cli.locate import control_socket, locate_config
from fractal.config import load


@pytest.mark.parametrize(
    "device",
    [
        'name = "Attic"',
        'name = "Attic"\nstate_dir = "here"',
        'name = "Attic"\nstate_dir = "/srv/a b"',
        'name = "Attic"\nstate_dir = "here"\nruntime_dir = "there/run"',
        'name = "Attic"\nruntime_dir = "~/run"',
    ],
)
def test_agrees_with_the_agent(config: Path, device: str) -> None:
    config.write_text(f"schema = 1\n[device]\n{device}\n")
    assert control_socket(str(config)) == load(config).device.runtime_dir / "control.sock"


def test_where_it_looks(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fractal.cli.locate.SYSTEM_CONFIG", config.parent / "etc" / "config.toml")
    with pytest.raises(NotFound, match="homeserver config init"):
        locate_config(None)
    users = config.parent / "config" / "homeserver" / "config.toml"
    for place in (users, config.parent / "etc" / "config.toml"):
        place.parent.mkdir(parents=True)
        place.write_text("")
        assert locate_config(None) == place
    assert locate_config(str(config)) == config


def test_a_home_that_is_nobodys(config: Path) -> None:
    config.write_text('[device]\nstate_dir = "~no such user/x"\n')
    with pytest.raises(Misconfigured, match="no such home"):
        control_socket(str(config))
