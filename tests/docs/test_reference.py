"""The reference says what the code does: it is made from it, and nothing in it is left over."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import click
import pytest
from click.testing import CliRunner

from fractal.agent.control.contract import Items, Nested, Shape, mismatches
from fractal.agent.control.handlers import COMMANDS
from fractal.agent.control.specs import SPECS
from fractal.api import errors
from fractal.api.errors import ExitCode, FractalError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def generate() -> Iterator[ModuleType]:
    """contrib/generate.py as a module."""
    sys.path.insert(0, str(ROOT / "contrib"))
    try:
        spec = importlib.util.spec_from_file_location("generate", ROOT / "contrib" / "generate.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(ROOT / "contrib"))


def page(name: str) -> str:
    return (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8")


def test_everything_made_is_up_to_date(generate: ModuleType) -> None:
    assert generate.outdated() == []


def test_cli_page_has_every_command_and_option_and_no_other(generate: ModuleType) -> None:
    commands = {" ".join(path): command for path, command in generate.walk(generate.cli, ["homeserver"])}
    sections = re.split(r"^#{2,4} `(homeserver[^`]*)`$", page("cli.md"), flags=re.MULTILINE)
    documented = dict(zip(sections[1::2], sections[2::2], strict=True))
    assert set(documented) == set(commands)
    for name, command in commands.items():
        options = {
            o for p in command.params if isinstance(p, click.Option) for o in (*p.opts, *p.secondary_opts)
        }
        rows = re.findall(r"^\| `(-[^`]*)` \|", documented[name], flags=re.MULTILINE)
        assert {o for row in rows for o in re.findall(r"(?:^|, )(-[\w-]+)", row)} == options, name


def test_every_command_explains_itself(generate: ModuleType) -> None:
    for path, command in generate.walk(generate.cli, ["homeserver"]):
        assert command.help, path
        for option in command.params:
            assert not isinstance(option, click.Option) or option.help, (path, option.opts)


def test_exit_codes_page_has_every_code_and_no_other() -> None:
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", page("exit-codes.md"), flags=re.MULTILINE)
    assert {(int(number), name) for number, name in rows} == {(int(c), c.name) for c in ExitCode}


def fields(shape: Shape, prefix: str = "") -> set[str]:
    found = set()
    for name, want in shape.items():
        found.add(prefix + name)
        if isinstance(want, Nested):
            found |= fields(want.shape, f"{prefix}{name}.")
        elif isinstance(want, Items):
            found |= fields(want.shape, f"{prefix}{name}[].")
    return found


def test_json_page_has_every_parameter_and_field_and_no_other() -> None:
    sections = re.split(r"^## `(\w+\.\w+)`$", page("json-output.md"), flags=re.MULTILINE)
    documented = dict(zip(sections[1::2], sections[2::2], strict=True))
    assert set(documented) == set(SPECS) == set(COMMANDS)
    for name, spec in SPECS.items():
        params, _, results = documented[name].partition("Result:\n")
        assert set(re.findall(r"^\| `([^`]+)` \|", params, flags=re.MULTILINE)) == set(spec.params)
        wanted = fields(spec.result) | fields(spec.output or {})
        assert set(re.findall(r"^\| `([^`]+)` \|", results, flags=re.MULTILINE)) == wanted


def test_documents_of_commands_without_an_agent(
    generate: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from local_documents import LOCAL

    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    config = tmp_path / "config.toml"
    argv = {
        "agent install": ["agent", "install", "--user"],
        "config init": ["config", "init", "--name", "Attic", "--state-dir", str(tmp_path / "state")],
        "config check": ["config", "check"],
        "plugin list": ["plugin", "list"],
        "plugin show": ["plugin", "show", "directory"],
        "plugin check": ["plugin", "check", "memory", "--kind", "store"],
    }
    assert set(argv) == set(LOCAL)
    text = page("json-output.md")
    for name, words in argv.items():
        shown = CliRunner().invoke(generate.cli, ["--config", str(config), *words, "--json"])
        assert mismatches(json.loads(shown.stdout), LOCAL[name]) == [], (name, shown.output)
        section = text.split(f"### `homeserver {name} --json`", 1)[1].split("\n#", 1)[0]
        assert set(re.findall(r"^\| `([^`]+)` \|", section, flags=re.MULTILINE)) == fields(LOCAL[name])


def test_error_codes_named_in_the_page_exist() -> None:
    (line,) = re.findall(r"`code` is a stable word \(([^)]*)\)", page("json-output.md"))
    known = {e.code for e in vars(errors).values() if isinstance(e, type) and issubclass(e, FractalError)}
    known |= {"ambiguous", "interrupted", "internal"}
    assert set(re.findall(r"`(\w+)`", line)) <= known


@pytest.mark.parametrize("folder", ["completions", "man"])
def test_nothing_made_names_this_machine(folder: str) -> None:
    for path in (ROOT / "contrib" / folder).iterdir():
        assert str(ROOT) not in path.read_text(encoding="utf-8")
