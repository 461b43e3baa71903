"""`homeserver agent install`: the unit that a stranger with systemd gets."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from fractal.cli.agent import program, unit_text
from fractal.cli.main import cli


@pytest.fixture
def unit(config: Path) -> Path:
    return config.parent / "config" / "systemd" / "user" / "homeserver.service"


def test_writes_the_unit_and_says_what_to_do(config: Path, unit: Path) -> None:
    shown = CliRunner().invoke(cli, ["--config", str(config), "agent", "install", "--user"])
    assert shown.exit_code == 0
    assert "systemctl --user enable --now homeserver" in shown.output
    text = unit.read_text()
    assert f"--config {config} agent run\n" in text
    assert "WantedBy=default.target" in text
    assert "Type=notify" in text


def test_without_a_configuration_it_warns_and_begins_with_making_one(config: Path, unit: Path) -> None:
    argv = ["--config", str(config), "agent", "install", "--user"]
    config.unlink()
    shown = CliRunner().invoke(cli, argv)
    assert f"no configuration at {config} yet" in shown.stderr
    steps = shown.stdout.splitlines()[1:]
    assert steps[0].split() == ["homeserver", "--config", str(config), "config", "init"]
    config.write_text('[device]\nname = "Attic"\n')
    shown = CliRunner().invoke(cli, argv)
    assert shown.stderr == ""
    assert shown.stdout.splitlines()[1:] == steps[1:]


def test_dry_run_writes_nothing(config: Path, unit: Path) -> None:
    shown = CliRunner().invoke(cli, ["--config", str(config), "agent", "install", "--user", "-n", "--json"])
    told = json.loads(shown.stdout)
    assert told["path"] == str(unit)
    assert "[Service]" in told["unit"]
    assert not unit.exists()


def test_another_unit_is_not_replaced_unasked(config: Path, unit: Path) -> None:
    unit.parent.mkdir(parents=True)
    unit.write_text("# mine\n")
    argv = ["--config", str(config), "agent", "install", "--user"]
    shown = CliRunner().invoke(cli, argv)
    assert shown.exit_code == 1
    assert unit.read_text() == "# mine\n"
    assert CliRunner().invoke(cli, [*argv, "--force"]).exit_code == 0
    assert CliRunner().invoke(cli, argv).exit_code == 0
    assert [p.name for p in unit.parent.iterdir()] == [unit.name]


def test_the_unit_starts_the_command_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert program() == Path(sys.executable).with_name("homeserver")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python3"))
    monkeypatch.setenv("PATH", str(tmp_path / "scripts"))
    with pytest.raises(click.ClickException, match="virtual environment"):
        program()
    installed = tmp_path / "scripts" / "homeserver"
    installed.parent.mkdir()
    installed.write_text("#!/bin/sh\n")
    installed.chmod(0o755)
    assert program() == installed


def test_paths_are_quoted_for_systemd(tmp_path: Path) -> None:
    text = unit_text(
        Path("/opt/home server/bin/homeserver"), str(tmp_path / "100% $HOME.toml"), as_user=False
    )
    assert 'ExecStart="/opt/home server/bin/homeserver" --config "' in text
    assert "100%% $$HOME.toml" in text
    for bad in ('a"b', "a\\b", "a\nb"):
        with pytest.raises(click.UsageError):
            unit_text(Path("/usr/bin/homeserver"), str(tmp_path / bad), as_user=False)
