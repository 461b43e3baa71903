"""A plugin written, built and installed outside the repository adds a store, a command and an observer."""

from __future__ import annotations

import json
from pathlib import Path

from tests.packaging.conftest import Installed

ROUND_TRIP = """
import asyncio, pathlib, sys
from fractal.config.stores import store_settings
from fractal.plugins import Plugins
from fractal.testing.context import real_context

async def main(folder):
    record = Plugins.discover().store("example")
    settings = store_settings(None, "tapes", record.config, {"path": str(folder / "objects")})
    async with real_context(folder) as context, record.open(context, settings) as store:
        await store.put_new("a/b", b"hello")
        print(b"".join([chunk async for chunk in store.get("a/b")]).decode())

asyncio.run(main(pathlib.Path(sys.argv[1])))
"""
OBSERVE = """
from fractal.api.events import Event
from fractal.plugins import Plugins

plugins = Plugins.discover(enabled=["example", "broken", "absent"])
for kind in ("app.taken", "bad", "app.frozen"):
    plugins.event(Event(kind=kind, text="Kitchen"))
print(*(f"{b.plugin}: {b.reason}" for b in plugins.broken), sep="\\n")
"""
IMPORTED = """
import json, pathlib, sys
from fractal.config import load

load(pathlib.Path(sys.argv[1]))
print(json.dumps(sorted(sys.modules)))
"""
CONFIG = 'schema = 1\n[device]\nname = "Attic"\nstate_dir = "state"\n'
HEAVY = ("aiohttp", "cryptography", "zstandard", "yaml", "nacl", "sqlite3", "asyncio", "ssl")
UNNAMED = (
    "fractal_example",
    "fractal_broken",
    "fractal.builtin.directory",
    "fractal.builtin.process.runtime",
    "fractal.builtin.copy.snapshotter",
    "fractal.builtin.direct.transport",
    "fractal.builtin.sqlite",
)


def test_its_store_opens_by_name(installed: Installed, tmp_path: Path) -> None:
    done = installed.python(ROUND_TRIP, str(tmp_path))
    assert (done.stdout, done.returncode) == ("hello\n", 0), done.stderr


def test_its_command_runs_and_is_in_the_help(installed: Installed) -> None:
    assert installed.homeserver("example", "well", "said").stdout == "well said\n"
    assert "Say WORDS back." in installed.homeserver("--help").stdout


def test_its_observer_hears_events_and_may_fail(installed: Installed) -> None:
    done = installed.python(OBSERVE)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:2] == ["observed app.taken Kitchen", "observed app.frozen Kitchen"]
    assert "plugin example failed to observe bad" in done.stderr
    assert lines[2].startswith("absent: not installed")
    assert lines[3].startswith("broken: ModuleNotFoundError: No module named 'a_library_that_nobody_has'")


def test_a_broken_plugin_is_listed_and_everything_else_goes_on(installed: Installed) -> None:
    done = installed.homeserver("plugin", "list", "--json")
    assert done.returncode == 7, done.stderr
    listed = json.loads(done.stdout)
    assert {(b["kind"], b["name"], b["plugin"]) for b in listed["backends"]} >= {
        ("store", "example", "example"),
        ("store", "directory", "builtin"),
    }
    assert listed["others"] == [{"plugin": "example", "observer": True, "checks": []}]
    ((broken,)) = listed["broken"]
    assert broken["plugin"] == "broken"
    assert "a_library_that_nobody_has" in broken["reason"]


def test_naming_the_broken_plugin_says_why_it_cannot_be_used(installed: Installed, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(CONFIG + '[runtime]\nbackend = "broken"\n')
    done = installed.homeserver("--config", str(tmp_path / "c.toml"), "config", "check")
    assert done.returncode == 3
    assert f"{tmp_path}/c.toml:6: runtime.backend: runtime 'broken': plugin broken is broken" in done.stderr
    assert "Traceback" not in done.stderr


def test_only_what_the_configuration_names_is_imported(installed: Installed, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(CONFIG)
    done = installed.python(IMPORTED, str(tmp_path / "c.toml"))
    assert done.returncode == 0, done.stderr
    imported = set(json.loads(done.stdout))
    assert "fractal.builtin.plugin" in imported
    assert imported.isdisjoint(UNNAMED)
    assert imported.isdisjoint(HEAVY)


def test_its_contract_can_be_checked_on_the_device(installed: Installed, tmp_path: Path) -> None:
    done = installed.homeserver("plugin", "check", "example", "--set", f"path={tmp_path}/objects", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    (report,) = json.loads(done.stdout)["checks"]
    assert sum(test["result"] == "passed" for test in report["tests"]) > 40
    assert list(tmp_path.iterdir()) == []
