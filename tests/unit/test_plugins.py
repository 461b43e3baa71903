"""Plugins: found by name, loaded when asked for, isolated when broken."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from fractal.api.catalog import CatalogBackend
from fractal.api.context import Context
from fractal.api.errors import BackendError, ExitCode, NotInstalled
from fractal.api.events import Event
from fractal.api.health import HealthCheck
from fractal.api.store import StoreBackend
from fractal.builtin import plugin as builtin
from fractal.hookspecs import hookimpl
from fractal.plugin_records import KINDS
from fractal.plugins import BrokenPlugin, Plugins


@dataclass(frozen=True)
class Config:
    path: str = field(default="", metadata={"help": "Where."})


@dataclass
class Thawed:
    path: str = field(default="", metadata={"help": "Where."})


@dataclass(frozen=True)
class Silent:
    path: str = ""


@asynccontextmanager
async def open_it(context: Context, config: Any) -> AsyncIterator[Any]:
    yield None


async def no_findings(context: Context) -> list[Any]:
    return []


def record(name: Any = "tape", **changes: Any) -> StoreBackend[Any]:
    values = {"name": name, "summary": "Tape.", "config": Config, "open": open_it}
    return StoreBackend(**{**values, **changes})


class Module:
    """Stands for a plugin's module."""

    def __init__(self, **names: object) -> None:
        self.__dict__.update(names)


def offering(*records: object) -> object:
    """A plugin whose store hook yields these."""

    @hookimpl
    def fractal_stores() -> Iterable[Any]:
        yield from records

    return Module(fractal_stores=fractal_stores)


def observing(observe: Callable[..., None]) -> object:
    return Module(fractal_event=hookimpl(observe))


def reason(plugin: object) -> str:
    """Why this plugin is broken."""
    plugins = Plugins.discover(extra={"other": offering(record("other")), "bad": plugin})
    assert plugins.store("other").name == "other"
    assert plugins.store("directory").name == "directory"
    (broken,) = plugins.broken
    assert broken.plugin == "bad"
    with pytest.raises(BrokenPlugin) as caught:
        plugins.store("bad")
    assert broken.reason in str(caught.value)
    assert caught.value.exit_code is ExitCode.MISSING
    return broken.reason


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("runtime", "process"),
        ("snapshot", "copy"),
        ("store", "directory"),
        ("store", "memory"),
        ("transport", "direct"),
        ("coordination", "sqlite"),
        ("coordination", "memory"),
        ("catalog", "folder"),
    ],
)
def test_every_builtin_is_there_by_its_typed_getter(kind: str, name: str) -> None:
    plugins = Plugins.discover()
    getters = {"snapshot": plugins.snapshotter, "coordination": plugins.coordinator}
    found = getters.get(kind, getattr(plugins, kind, None))
    assert found is not None
    assert found(name) is plugins.backend(kind, name)
    assert isinstance(plugins.backend(kind, name), KINDS[kind].record)
    assert plugins.backend(kind, name).summary.endswith(".")


def test_one_managers_plugins_are_not_anothers() -> None:
    mine = Plugins.discover(extra={"tape": offering(record())})
    assert mine.store("tape").name == "tape"
    with pytest.raises(NotInstalled):
        Plugins.discover().store("tape")


def test_an_unknown_backend_names_what_there_is_and_what_was_meant() -> None:
    plugins = Plugins.discover()
    with pytest.raises(NotInstalled, match="Did you mean 'directory'") as caught:
        plugins.store("directroy")
    assert caught.value.exit_code is ExitCode.MISSING
    with pytest.raises(NotInstalled, match="fractal-nspawn"):
        plugins.runtime("nspawn")


def test_a_plugin_with_several_backends_is_addressed_by_both_names() -> None:
    plugins = Plugins.discover(extra={"tape": offering(record("tape"), record("robot"))})
    assert plugins.store("tape").name == "tape"
    assert plugins.store("tape:robot").name == "robot"
    assert plugins.names("store") == ["directory", "memory", "tape", "tape:robot"]
    with pytest.raises(NotInstalled, match="it offers tape, tape:robot"):
        plugins.store("tape:reel")
    with pytest.raises(NotInstalled, match="offers no catalog"):
        plugins.catalog("tape")


def test_builtins_cannot_be_replaced() -> None:
    other = record("directory", summary="Not ours.")
    plugins = Plugins.discover(extra={"directory": offering(other)})
    assert plugins.store("directory") is not other
    assert [b.reason for b in plugins.broken] == [
        "store 'directory' is the name of a builtin, which cannot be replaced"
    ]
    elsewhere = Plugins.discover(extra={"tape": offering(other)})
    assert elsewhere.store("tape:directory") is other


def fails_on_import() -> object:
    raise SystemExit("no licence")


def test_a_hook_that_raises_breaks_its_plugin_alone() -> None:
    @hookimpl
    def fractal_stores() -> Iterable[Any]:
        yield record()
        raise RuntimeError("no tape drive\nsecond line")

    assert reason(Module(fractal_stores=fractal_stores)) == "RuntimeError: no tape drive second line"


def test_a_hook_that_exits_does_not_end_the_agent() -> None:
    @hookimpl
    def fractal_stores() -> Iterable[Any]:
        yield fails_on_import()

    assert reason(Module(fractal_stores=fractal_stores)) == "SystemExit: no licence"


def test_a_misspelt_hook_is_told() -> None:
    @hookimpl
    def fractal_storess() -> Iterable[Any]:
        yield record()

    assert "unknown hook fractal_storess; meant fractal_stores?" in reason(
        Module(fractal_storess=fractal_storess)
    )


def test_a_hook_with_an_argument_too_many_is_told() -> None:
    @hookimpl
    def fractal_stores(config: object) -> Iterable[Any]:
        yield record()

    assert "config" in reason(Module(fractal_stores=fractal_stores))


def test_a_hook_that_returns_instead_of_yielding_is_told() -> None:
    @hookimpl
    def fractal_stores() -> Any:
        return record()

    assert "write `yield`" in reason(Module(fractal_stores=fractal_stores))


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        (object(), "yields object, not StoreBackend"),
        (CatalogBackend(name="x", summary="", config=Config, open=open_it), "yields CatalogBackend"),
        (record(api=2), "made for plugin API 2, this agent has 1"),
        (record(name="Tape Robot"), "its name must be"),
        (record(name=3), "its name must be"),
        (record(config=dict), "its config must be a dataclass"),
        (record(config=Config()), "its config must be a dataclass type"),
        (record(config=Thawed), "its config Thawed must be frozen"),
        (record(config=Silent), "'path' lacks metadata"),
        (record(open=None), "its open must be callable"),
    ],
)
def test_an_unsound_record_breaks_its_plugin(bad: object, expected: str) -> None:
    assert expected in reason(offering(bad))


def test_a_record_yielded_twice_is_told() -> None:
    assert "yielded twice" in reason(offering(record(), record()))


def entry(name: str, value: str) -> EntryPoint:
    return EntryPoint(name=name, value=value, group="fractal.plugins")


def test_entry_points_are_imported_only_when_asked_for() -> None:
    plugins = Plugins([entry("lazy", "antigravity_that_does_not_exist"), entry("sqlite3x", "sqlite3x")])
    assert not plugins.broken
    plugins.store("directory")
    assert not plugins.broken
    plugins.all()
    assert [b.plugin for b in plugins.broken] == ["lazy", "sqlite3x"]
    assert "ModuleNotFoundError" in plugins.broken[0].reason


def test_two_distributions_with_one_name_are_both_left_out() -> None:
    plugins = Plugins([entry("twin", "one.plugin"), entry("twin", "two.plugin")])
    with pytest.raises(BrokenPlugin, match=r"both one\.plugin and two\.plugin bring it"):
        plugins.store("twin")


def test_a_stranger_called_builtin_is_refused_and_the_builtins_stay() -> None:
    plugins = Plugins([entry("builtin", "stranger.plugin"), entry("builtin", "fractal.builtin.plugin")])
    plugins.all()
    assert [b.plugin for b in plugins.broken] == ["builtin"]
    assert plugins.store("directory").open is not None


def test_disabled_plugins_are_as_if_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [entry("tape", "no.such.module")]
    monkeypatch.setattr("fractal.plugins.entry_points", lambda group: found)
    with pytest.raises(BrokenPlugin):
        Plugins.discover().store("tape")
    with pytest.raises(NotInstalled) as caught:
        Plugins.discover(disabled=["tape"]).store("tape")
    assert not isinstance(caught.value, BrokenPlugin)


def test_events_reach_every_observer_though_one_fails(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[str] = []

    def fail(event: Event) -> None:
        raise RuntimeError("cannot")

    def note(event: Event) -> None:
        seen.append(event.kind)

    def count() -> None:
        seen.append("no argument")

    plugins = Plugins.discover(
        extra={
            "a": observing(fail),
            "b": observing(note),
            "c": observing(count),
        }
    )
    with caplog.at_level(logging.WARNING):
        plugins.event(Event(kind="app.taken"))
    assert seen == ["app.taken", "no argument"]
    assert "plugin a failed to observe app.taken" in caplog.text


def test_health_checks_come_from_loaded_plugins() -> None:
    @hookimpl
    def fractal_health_checks() -> Iterable[HealthCheck]:
        yield HealthCheck(name="raid", summary="Disks.", check=no_findings)

    plugins = Plugins.discover(extra={"raid": Module(fractal_health_checks=fractal_health_checks)})
    assert [check.name for check in plugins.health_checks()] == ["raid"]


def test_records_and_builtins_import_nothing_heavy() -> None:
    code = (
        "import sys, fractal.plugins, fractal.builtin.plugin; fractal.plugins.Plugins.discover();"
        "print(*[m for m in ('aiohttp','cryptography','zstandard','yaml','nacl','sqlite3','asyncio') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "\n"


def test_builtins_declare_the_abilities_that_their_classes_have() -> None:
    from fractal.api import snapshot, transport
    from fractal.builtin.copy.snapshotter import CopySnapshotter
    from fractal.builtin.direct.transport import DirectTransport

    (copy,), (direct,) = builtin.fractal_snapshotters(), builtin.fractal_transports()
    assert getattr(copy, "capabilities") == {  # noqa: B009 - an Offer has no attributes of its own
        name
        for name in vars(snapshot)
        if name.startswith("Supports") and _has(CopySnapshotter, vars(snapshot)[name])
    }
    assert getattr(direct, "capabilities") == {  # noqa: B009
        name
        for name in vars(transport)
        if name.startswith("Supports") and _has(DirectTransport, vars(transport)[name])
    }


def _has(kind: type, protocol: type) -> bool:
    wanted = [name for name in vars(protocol) if not name.startswith("_")]
    return all(hasattr(kind, name) for name in wanted)


def test_a_backend_error_is_what_callers_catch() -> None:
    with pytest.raises(BackendError):
        Plugins.discover().store("x" * 1000)
