"""The command line starts quickly because it imports little: what must stay out, stays out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fractal.testing.control import SampleAgent

HEAVY = (
    *(
        "asyncio",
        "aiohttp",
        "cryptography",
        "nacl",
        "yaml",
        "zstandard",
        "sqlite3",
        "pluggy",
        "http.client",
        "ssl",
    ),
    *("logging", "importlib.metadata", "subprocess", "concurrent.futures", "email"),
    *(
        "fractal.agent",
        "fractal.plugins",
        "fractal.hookspecs",
        "fractal.builtin",
        "fractal.config",
        "fractal.manifest",
    ),
    *("fractal.core", "fractal.crypto", "fractal.archive", "fractal.shell"),
)
PROGRAM = """
import sys
from fractal.cli.main import main
try:
    main()
finally:
    import json
    open({report!r}, "w").write(json.dumps(sorted(sys.modules)))
"""


def imported(tmp_path: Path, *argv: str) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    """Run `homeserver ARGV...` and return what it imported."""
    report = tmp_path / "modules.json"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(report=str(report)), *argv],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    return done, set(json.loads(report.read_text()))


def check_light(modules: set[str]) -> None:
    heavy = [m for m in sorted(modules) if any(m == h or m.startswith(f"{h}.") for h in HEAVY)]
    assert heavy == []


@pytest.mark.usefixtures("config")
def test_help_and_version_import_nothing_heavy(tmp_path: Path) -> None:
    # The first run fills the cache of plugins' help lines.
    first, _ = imported(tmp_path, "--help")
    done, modules = imported(tmp_path, "--help")
    assert done.returncode == 0
    assert done.stdout == first.stdout
    assert "status" in done.stdout
    check_light(modules)
    done, modules = imported(tmp_path, "--version")
    assert done.stdout.startswith("homeserver ")
    check_light(modules)


def test_status_imports_nothing_heavy(tmp_path: Path, config: Path, agent: SampleAgent) -> None:
    for argv in (["status"], ["status", "--json"], ["app", "list"]):
        done, modules = imported(tmp_path, "--config", str(config), *argv)
        assert done.returncode == 0, done.stderr
        check_light(modules)
    assert [name for name, _ in agent.calls] == ["status.show", "status.show", "app.list"]


def test_without_an_agent_the_answer_says_what_to_do(tmp_path: Path, config: Path) -> None:
    done, modules = imported(tmp_path, "--config", str(config), "status")
    assert done.returncode == 5
    assert "homeserver agent run" in done.stderr
    assert "Traceback" not in done.stderr
    check_light(modules)


@pytest.mark.parametrize(
    ("text", "code"),
    [("not = [toml", 3), ("\xff", 3), (None, 8), ("[device]\nruntime_dir = 7\n", 5), ("device = 3\n", 5)],
)
def test_bad_configurations_are_one_message(
    config: Path, text: str | None, code: int, tmp_path: Path
) -> None:
    if text is None:
        config.unlink()
    else:
        config.write_bytes(text.encode("latin-1"))
    done, _ = imported(tmp_path, "--config", str(config), "app", "list")
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1
