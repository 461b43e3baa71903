"""What the shells are offered: commands, options, and the names that the agent knows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fractal.api.errors import BackendError
from fractal.testing.control import SampleAgent

HERE = Path(__file__).parents[2]


def offered(config: Path, *words: str, shell: str = "zsh") -> list[str]:
    """Values for the last word, as the script of a shell gets them."""
    line = "\n".join(("homeserver", "--config", str(config), *words))
    asked = {
        "_HOMESERVER_COMPLETE": f"{shell}_complete",
        "COMP_WORDS": line,
        "COMP_CWORD": str(2 + len(words)),
    }
    done = subprocess.run(
        [sys.executable, "-c", "from fractal.cli.main import main; main()"],
        env={**os.environ, **asked},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    if shell == "bash":
        return [line.partition(",")[2] for line in done.stdout.splitlines()]
    return done.stdout.splitlines()[1::3]


@pytest.fixture
def named(agent: SampleAgent) -> SampleAgent:
    apps = [{"name": name} for name in ("radicale", "Recipes", "wiki", "r\x1b[31m")]
    agent.results["app.list"] = {"apps": apps, "removed": [{"name": "ration"}]}
    agent.results["device.list"] = {"devices": [{"name": "Front door"}], "pending": [{"name": "Cellar"}]}
    agent.results["store.list"] = {"stores": [{"name": "Shelf"}]}
    agent.results["group.list"] = {"groups": [{"name": "Group 1"}]}
    return agent


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("app", "show", "r"), ["radicale", "Recipes"]),
        (("app", "show", "--group", "'Group 1'", "w"), ["wiki"]),
        (("snapshot", "copy", "ra"), ["radicale", "ration"]),
        (("app", "move", "wiki", ""), ["Front door"]),
        (("app", "move", "wiki", "--group", ""), ["Group 1"]),
        (("app", "install", "x", "--store", "s"), ["Shelf"]),
        (("device", "approve", ""), ["Cellar"]),
        (("app", "show", "nothing"), []),
    ],
)
def test_names_that_the_agent_knows(
    config: Path, named: SampleAgent, words: tuple[str, ...], found: list[str]
) -> None:
    assert offered(config, *words) == found
    assert {name for name, _ in named.calls} <= {"app.list", "device.list", "store.list", "group.list"}


def test_without_an_agent_or_with_an_error_nothing_is_offered_and_nothing_said(
    config: Path, tmp_path: Path
) -> None:
    assert offered(config, "app", "show", "") == []
    assert offered(tmp_path / "none.toml", "app", "show", "") == []


def test_an_error_of_the_agent_offers_nothing(config: Path, named: SampleAgent) -> None:
    named.errors["app.list"] = BackendError("no")
    assert offered(config, "app", "show", "") == []


def test_bash_gets_names_as_it_can_use_them(config: Path, named: SampleAgent, tmp_path: Path) -> None:
    assert offered(config, "app", "move", "wiki", "", shell="bash") == ["'Front door'"]
    # The script as it ships, in a real bash.
    program = tmp_path / "bin" / "homeserver"
    program.parent.mkdir()
    program.write_text(
        f"#!/bin/sh\nexec {sys.executable} -c 'from fractal.cli.main import main; main()' \"$@\"\n"
    )
    program.chmod(0o755)
    script = (
        f"source {HERE / 'contrib' / 'completions' / 'homeserver.bash'}\n"
        f"COMP_WORDS=(homeserver --config {config} app move wiki ''); COMP_CWORD=6\n"
        '_homeserver_completion homeserver; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    path = f"{program.parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.splitlines() == ["'Front door'"]
    assert named.calls
