"""Commands of plugins: found late, isolated when broken, their help lines cached but nothing run from the cache."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from fractal.cli.main import cli

GOOD = """
import click
@click.command()
def hello():
    "Say hello."
    click.echo("hello from a plugin")
"""


@pytest.fixture
def installed(tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on `sys.path` with a distribution that brings three commands, two of them broken, one called as ours."""
    folder = tmp_path / "site"
    info = folder / "fhs_outside-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fhs-outside\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[fractal.commands]\nhello = fhs_outside:hello\nbroken = fhs_broken:x\nwrong = fhs_outside:__name__\n"
        "status = fhs_outside:hello\n"
    )
    (folder / "fhs_outside.py").write_text(GOOD)
    (folder / "fhs_broken.py").write_text("raise RuntimeError('boom')\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(folder)])
    yield folder
    for name in ("fhs_outside", "fhs_broken"):
        sys.modules.pop(name, None)


def invoke(*argv: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli, list(argv))
    return done.exit_code, done.output


def test_a_plugins_command_is_listed_and_run(installed: Path) -> None:
    _, shown = invoke("--help")
    assert "Commands of plugins" in shown
    assert "Say hello." in shown
    assert invoke("hello") == (0, "hello from a plugin\n")


def test_a_broken_one_is_told_and_hurts_nobody(installed: Path) -> None:
    code, shown = invoke("--help")
    assert code == 0
    assert "boom" in shown
    for name in ("broken", "wrong"):
        code, shown = invoke(name)
        assert code == 1
        assert "fhs-outside" in shown


def test_a_plugin_cannot_replace_our_commands(installed: Path) -> None:
    _, shown = invoke("status", "--help")
    assert "Show how every group" in shown


def test_help_lines_come_from_the_cache_until_something_is_installed(installed: Path, tmp_path: Path) -> None:
    _, before = invoke("--help")
    cache = tmp_path / "cache" / "homeserver" / "commands.json"
    held = json.loads(cache.read_text())
    held["help"]["hello"] = "From the cache."
    cache.write_text(json.dumps(held))
    assert "From the cache." in invoke("--help")[1]
    os.utime(installed, ns=(1, 1))
    assert invoke("--help")[1] == before


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"stamp": 1, "help": 2}', b"\xff\xfe\x00"])
def test_a_damaged_cache_is_made_anew(installed: Path, tmp_path: Path, damage: bytes) -> None:
    _, before = invoke("--help")
    (tmp_path / "cache" / "homeserver" / "commands.json").write_bytes(damage)
    assert invoke("--help") == (0, before)


def test_an_unwritable_cache_is_done_without(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    assert "Say hello." in invoke("--help")[1]
