"""The configuration, plugin API and log pages name everything that the code has, and nothing else. The code is asked by other means than those
that make the pages."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import fractal.api
from fractal import hookspecs
from fractal.api import errors
from fractal.api.backend import API_VERSION
from fractal.api.errors import FractalError
from fractal.config.schema import schema
from fractal.core import entries, model
from fractal.core.entries import KINDS
from fractal.plugins import Plugins

REFERENCE = Path(__file__).resolve().parents[2] / "docs" / "reference"
ROW = re.compile(r"^\| `([^`]+)` \|", flags=re.MULTILINE)


def sections(page: str, level: str) -> dict[str, str]:
    """Heading (without the level's marks) -> text up to the next heading of at most that level."""
    text = (REFERENCE / page).read_text(encoding="utf-8")
    parts = re.split(rf"^({level}) (.*)$", text, flags=re.MULTILINE)
    return dict(zip(parts[2::3], parts[3::3], strict=True))


# --- configuration.md ------------------------------------------------------------------------------------------------


def keys_of_schema(node: dict[str, Any], where: str = "") -> Iterator[str]:
    """Every key that the JSON Schema allows, with dots."""
    for name, below in node.get("properties", {}).items():
        key = f"{where}{name}"
        inner = below.get("items", below)
        tables = inner.get("oneOf", [inner])
        if all("properties" in t for t in tables):
            for table in tables:
                yield from keys_of_schema(table, f"{key}.")
        else:
            yield key


def test_configuration_has_every_key_and_no_other() -> None:
    documented = set()
    for heading, text in sections("configuration.md", "##|###").items():
        rows = set(ROW.findall(text))
        if heading == "Top level":
            documented |= rows
        elif table := re.fullmatch(r"`\[([a-z.-]+)\]`", heading):
            documented |= {f"{table[1]}.{row}" for row in rows}
        elif re.match(r"`\[\[catalog\]\]`", heading):
            documented |= {f"catalog.{row}" for row in rows}
        else:
            assert heading == "`[store.NAME]`" or heading.startswith("Store backend"), heading
    wanted = {key for key in keys_of_schema(schema(Plugins([]))) if key != "store"}
    assert documented == wanted


def test_configuration_has_every_setting_of_every_builtin_store() -> None:
    plugins = Plugins([])
    documented = {
        heading.split("`")[1]: set(ROW.findall(text))
        for heading, text in sections("configuration.md", "##|###").items()
        if heading.startswith("Store backend")
    }
    assert set(documented) == set(plugins.names("store"))
    for name, rows in documented.items():
        fields = {f.name for f in dataclasses.fields(plugins.store(name).config)}
        assert rows == fields - {"objects"}, name  # set from Python only


# --- plugin-api.md ---------------------------------------------------------------------------------------------------


def api_modules() -> list[ModuleType]:
    return [
        importlib.import_module(m.name) for m in pkgutil.iter_modules(fractal.api.__path__, "fractal.api.")
    ]


def own(module: ModuleType) -> dict[str, Any]:
    """The public classes and functions that a module defines."""
    return {
        name: value
        for name, value in vars(module).items()
        if (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
        and not name.startswith("_")
    }


def methods(kind: type) -> set[str]:
    """What a class itself defines to be called or read."""
    return {
        name
        for name, value in vars(kind).items()
        if (name == "__call__" or not name.startswith("_"))
        and (inspect.isfunction(value) or isinstance(value, property))
    }


def own_fields(kind: type) -> set[str]:
    if issubclass(kind, Enum):
        return {member.name for member in kind}
    return set(inspect.get_annotations(kind)) if dataclasses.is_dataclass(kind) else set()


def test_plugin_api_has_every_module() -> None:
    documented = set(re.findall(r"`(fractal\.api\.\w+)`", " ".join(sections("plugin-api.md", "##"))))
    assert documented == {module.__name__ for module in api_modules()}


def test_plugin_api_has_every_hook_with_its_arguments_and_no_other() -> None:
    hooks = {
        n: v
        for n, v in vars(hookspecs).items()
        if inspect.isfunction(v) and v.__module__ == hookspecs.__name__
    }
    (text,) = [t for h, t in sections("plugin-api.md", "##").items() if h == "Hooks"]
    documented = re.findall(r"^### `(\w+)`\n\n {4}def \1\((.*)\) ->", text, flags=re.MULTILINE)
    assert (
        {name for name, _ in documented}
        == set(re.findall(r"^### `(\w+)`$", text, flags=re.MULTILINE))
        == set(hooks)
    )
    for name, arguments in documented:
        shown = [a.split(":")[0].strip() for a in arguments.split(",") if a.strip()]
        assert shown == list(inspect.signature(hooks[name]).parameters), name


@pytest.mark.parametrize("module", [m for m in api_modules() if m is not errors], ids=lambda m: m.__name__)
def test_plugin_api_has_every_name_field_and_method_and_no_other(module: ModuleType) -> None:
    (chapter,) = [t for h, t in sections("plugin-api.md", "##").items() if f"`{module.__name__}`" in h]
    parts = re.split(r"^### `(\w+)`$", chapter, flags=re.MULTILINE)
    documented = dict(zip(parts[1::2], parts[2::2], strict=True))
    assert set(documented) == set(own(module))
    for name, value in own(module).items():
        if not inspect.isclass(value):
            continue
        head, *_ = re.split(r"^#### ", documented[name], flags=re.MULTILINE)
        assert set(ROW.findall(head)) == own_fields(value), name
        shown = set(re.findall(rf"^#### `{name}\.(\w+)`$", documented[name], flags=re.MULTILINE))
        assert shown == methods(value), name


def test_plugin_api_has_every_error_with_its_codes_and_no_other() -> None:
    (text,) = [t for h, t in sections("plugin-api.md", "##").items() if h.startswith("Errors")]
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| `(\w+)` \| (\d+) `(\w+)` \|", text, flags=re.MULTILINE)
    wanted = {
        (e.__name__, e.__bases__[0].__name__, e.code, str(int(e.exit_code)), e.exit_code.name)
        for e in own(errors).values()
        if issubclass(e, FractalError)
    }
    assert set(rows) == wanted


def test_plugin_api_states_its_version_and_every_suite() -> None:
    text = (REFERENCE / "plugin-api.md").read_text(encoding="utf-8")
    assert f"This is version {API_VERSION} of the plugin API" in text
    for module, name in re.findall(r"`(fractal\.testing\.\w+)\.(\w+Contract)`", text):
        assert inspect.isclass(getattr(importlib.import_module(module), name))
    kinds = {"runtime", "snapshot", "store", "coordination", "transport"}
    assert set(re.findall(r"^\| (\w+) \| `fractal\.testing\.", text, flags=re.MULTILINE)) == kinds


def test_plugin_api_names_the_events_that_the_agent_tells() -> None:
    agent = Path(fractal.api.__path__[0]).parent / "agent"
    told = {
        kind
        for path in agent.rglob("*.py")
        for kind in re.findall(r'\.tell\(\s*"([a-z.]+)"', path.read_text(encoding="utf-8"))
    }
    (text,) = [t for h, t in sections("plugin-api.md", "##").items() if h.startswith("Events")]
    documented = set(ROW.findall(text.split("### ")[0]))
    assert documented == told


# --- log-entries.md --------------------------------------------------------------------------------------------------


def test_log_entries_has_every_kind_and_field_and_no_other() -> None:
    documented = {h.strip("`"): t for h, t in sections("log-entries.md", "##").items()}
    parts = documented.pop("Parts of entries")
    assert set(documented) == set(KINDS)
    for kind, entry in KINDS.items():
        assert set(ROW.findall(documented[kind])) == {f.name for f in dataclasses.fields(entry)}, kind
        assert "Who may: " in documented[kind]
    pieces = re.split(r"^### `(\w+)`$", parts, flags=re.MULTILINE)
    for name, text in zip(pieces[1::2], pieces[2::2], strict=True):
        value = getattr(entries, name, None) or getattr(model, name)
        assert set(ROW.findall(text)) == own_fields(value), name


def test_log_entries_explains_every_type_that_it_names() -> None:
    text = (REFERENCE / "log-entries.md").read_text(encoding="utf-8")
    named = set(
        re.findall(
            r"\b([A-Z][A-Za-z]+)\b", " ".join(re.findall(r"^\| `\w+` \| `([^`]+)`", text, flags=re.MULTILINE))
        )
    )
    explained = set(re.findall(r"^### `(\w+)`$", text, flags=re.MULTILINE))
    assert named - {"Mapping", "None"} == explained
