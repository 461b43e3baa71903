"""What a manifest takes along from beside it: told, and what is hidden only where somebody names it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fractal.api.errors import ExitCode
from fractal.cli.main import cli
from fractal.testing.control import SampleAgent

HOSTILE = """
services:
  main:
    image: x
    env_file: [own.env, .env, notes]
    configs: [key]
configs: {key: {file: .ssh/id_ed25519}}
"""


def run(config: Path, *argv: str) -> Result:
    return CliRunner().invoke(cli, ["--config", str(config), *argv])


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with keys, and a manifest of somebody else's in it."""
    folder = tmp_path / "home"
    (folder / ".ssh").mkdir(parents=True)
    (folder / ".ssh" / "id_ed25519").write_text("canary-key\n")
    (folder / "own.env").write_text("A=1\n")
    (folder / ".env").write_text("B=1\n")
    (folder / ".netrc").write_text("C=canary-password\n")
    (folder / "notes").symlink_to(".netrc")
    (folder / "compose.yml").write_text(HOSTILE)
    return folder


@pytest.mark.parametrize(
    "command", [("install",), ("update", "test", "--manifest"), ("install", "--dry-run")]
)
def test_keys_are_not_sent_unless_they_are_named(
    config: Path, agent: SampleAgent, home: Path, command: tuple[str, ...]
) -> None:
    file = str(home / "compose.yml")
    refused = run(config, "app", *command, file)
    assert refused.exit_code == ExitCode.USAGE
    assert "--read .ssh/id_ed25519" in refused.stderr and "--read notes" in refused.stderr
    assert "canary" not in refused.output and "own.env" not in refused.stderr
    one = run(config, "app", *command, file, "--read", ".ssh")
    assert "--read notes" in one.stderr and "--read .ssh" not in one.stderr
    assert not agent.calls
    run(config, "app", *command, file, "--read", ".ssh/", "--read", "notes")
    sent = agent.last[1]["files"]
    assert isinstance(sent, dict)
    assert set(sent) == {"own.env", ".env", "notes", ".ssh/id_ed25519"}


def test_a_check_lists_what_is_read_and_what_has_to_be_named(config: Path, home: Path) -> None:
    file = str(home / "compose.yml")
    shown = run(config, "app", "check", file)
    assert shown.exit_code == 0
    assert ".env, .ssh/id_ed25519, notes, own.env" in shown.stdout
    assert "needs: --read .ssh/id_ed25519" in shown.stdout and "canary" not in shown.output
    found = json.loads(run(config, "app", "check", file, "--json").stdout)
    assert found["reads"] == [".env", ".ssh/id_ed25519", "notes", "own.env"]
    options = sorted(need["option"] for need in found["needs"])
    assert options == ["--read .ssh/id_ed25519", "--read notes"]
    found = json.loads(run(config, "app", "check", file, "--json", "--read", ".").stdout)
    assert found["needs"] == []


def test_what_is_refused_is_listed_too(config: Path, home: Path) -> None:
    (home / "compose.yml").write_text("services: {main: {image: x, env_file: own.env, nonsense: 1}}\n")
    refused = run(config, "app", "check", str(home / "compose.yml"))
    assert refused.exit_code == ExitCode.FAILED and "own.env" in refused.stdout


@pytest.mark.parametrize(
    ("context", "asked"), [(".", "."), ("./app", ""), (".ssh", ".ssh"), ("app/.x", "app/.x")]
)
def test_what_is_built_of_a_home_has_to_be_named(config: Path, home: Path, context: str, asked: str) -> None:
    for folder in ("app/.x", "app/.git"):
        (home / folder).mkdir(parents=True)
    build = f"{{context: {context}, dockerfile_inline: FROM scratch}}"
    (home / "compose.yml").write_text(f"services: {{main: {{build: {build}}}}}\n")
    found = json.loads(run(config, "app", "check", str(home / "compose.yml"), "--json").stdout)
    assert [need["option"] for need in found["needs"]] == ([f"--read {asked}"] if asked else [])
    assert found["reads"] == [f"{context.removeprefix('./')}/"]
    refused = run(config, "app", "install", str(home / "compose.yml"), "--dry-run")
    assert ("--read" in refused.stderr) == bool(asked)
