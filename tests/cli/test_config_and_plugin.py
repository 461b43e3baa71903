"""`homeserver config` and `homeserver plugin`, which need no agent."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fractal.api.errors import Conflict, InvalidInput, NotFound, Unreachable
from fractal.cli.main import cli

SOUND = '[device]\nname = "Attic"\nstate_dir = "state"\n[transport.direct]\nhttps_port = 8443\n[store.NAS]\ntoken = "s3cret"\n'


def run(*arguments: str) -> Result:
    """The command, in this process; what it raises comes through."""
    return CliRunner().invoke(cli, arguments, catch_exceptions=False, standalone_mode=False)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(SOUND)
    return path


def test_a_sound_configuration_is_said_to_be(config: Path) -> None:
    done = run("--config", str(config), "config", "check")
    assert (done.return_value, done.stdout) == (0, f"{config} is sound.\n")
    document = json.loads(run("--config", str(config), "config", "check", "--json").stdout)
    assert document == {"file": str(config), "ok": True, "problems": []}


def test_problems_are_told_by_line_and_exit_status(config: Path) -> None:
    config.write_text('[device]\nnmae = "x"\n')
    done = run("--config", str(config), "config", "check")
    assert done.return_value == 3
    assert f"{config}:2: device.nmae: unknown key; did you mean 'name'?" in done.stderr.splitlines()
    document = json.loads(run("--config", str(config), "config", "check", "--json").stdout)
    assert [(p["line"], p["key"]) for p in document["problems"]] == [(1, "device.name"), (2, "device.nmae")]


def test_doctor_tells_each_problem_of_a_configuration_by_itself(config: Path) -> None:
    config.write_text('[device]\nnmae = "x"\n')
    findings = json.loads(run("--config", str(config), "doctor", "--json").stdout)["findings"]
    assert [f["what"].partition(": ")[0] for f in findings] == [f"{config}:1", f"{config}:2"]
    assert all("homeserver config check" in f["remedy"] for f in findings)


def test_without_an_agent_the_way_to_its_configuration_is_told(config: Path) -> None:
    with pytest.raises(Unreachable, match="homeserver config check"):
        run("--config", str(config), "status")


def test_show_fills_in_defaults_and_hides_what_may_be_secret(config: Path) -> None:
    text = run("--config", str(config), "config", "show").stdout
    assert "transport.direct.https_port" in text
    assert "s3cret" not in text
    document = json.loads(run("--config", str(config), "config", "show", "--json").stdout)
    assert document["device"]["state_dir"] == str(config.parent / "state")
    assert document["transport"]["direct"]["https_port"] == 8443
    assert document["transport"]["direct"]["hold"] == 20.0
    assert document["store"] == {"NAS": {"token": "(hidden)"}}


def test_init_writes_a_sound_file_once(tmp_path: Path) -> None:
    path = tmp_path / "new" / "config.toml"
    first = ("--config", str(path), "config", "init", "--name", "Front door", "--state-dir", str(tmp_path))
    assert run(*first, "--dry-run").stdout.startswith("# One device's configuration")
    assert not path.exists()
    run(*first)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    document = json.loads(run("--config", str(path), "config", "show", "--json").stdout)
    assert (document["device"]["name"], document["device"]["state_dir"]) == ("Front door", str(tmp_path))
    before = path.read_bytes()
    with pytest.raises(Conflict, match="exists already"):
        run(*first)
    assert path.read_bytes() == before


def test_init_does_not_follow_a_link_that_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "config.toml").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Conflict):
        run("--config", str(tmp_path / "config.toml"), "config", "init")
    assert not (tmp_path / "elsewhere").exists()


def test_the_schema_is_one_document() -> None:
    document = json.loads(run("config", "schema").stdout)
    assert set(document["properties"]) >= {"schema", "device", "runtime", "snapshot", "catalog", "store"}


def test_list_shows_the_builtins() -> None:
    document = json.loads(run("plugin", "list", "--json").stdout)
    found = {(b["kind"], b["name"]) for b in document["backends"] if b["plugin"] == "builtin"}
    assert found == {
        ("runtime", "process"),
        ("snapshot", "copy"),
        ("store", "directory"),
        ("store", "memory"),
        ("transport", "direct"),
        ("authority", "self-signed"),
        ("coordination", "sqlite"),
        ("coordination", "memory"),
        ("catalog", "folder"),
    }


def test_show_says_plainly_that_processes_are_not_isolated() -> None:
    text = run("plugin", "show", "process").stdout
    assert "none: apps run beside everything else on the device" in text
    assert "first_port" in text


def test_a_name_of_two_kinds_shows_both_unless_told() -> None:
    both = json.loads(run("plugin", "show", "memory", "--json").stdout)["backends"]
    assert [b["kind"] for b in both] == ["store", "coordination"]
    one = json.loads(run("plugin", "show", "memory", "--kind", "store", "--json").stdout)["backends"]
    assert [b["kind"] for b in one] == ["store"]


def test_an_unknown_plugin_gets_the_candidates() -> None:
    with pytest.raises(
        NotFound, match=r"no backend 'dircetory' is installed; there are: .*copy, direct, directory"
    ):
        run("plugin", "show", "dircetory")


def checked(*arguments: str) -> list[dict[str, Any]]:
    done = run("plugin", "check", *arguments, "--json")
    reports: list[dict[str, Any]] = json.loads(done.stdout)["checks"]
    assert done.return_value == (0 if all(r["ok"] for r in reports) else 1)
    return reports


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No configuration of this machine's own is found."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    monkeypatch.delenv("HOMESERVER_CONFIG", raising=False)
    monkeypatch.setattr("fractal.cli.locate.SYSTEM_CONFIG", tmp_path / "none.toml")


@pytest.mark.usefixtures("nowhere")
def test_check_asks_for_the_settings_that_are_needed() -> None:
    with pytest.raises(InvalidInput, match="--set path: missing"):
        run("plugin", "check", "directory")
    with pytest.raises(InvalidInput, match="--set staleness: must be a number"):
        run("plugin", "check", "directory", "--set", "path=/x", "--set", "staleness=soon")


@pytest.mark.usefixtures("nowhere")
def test_check_tells_what_probe_found(tmp_path: Path) -> None:
    (report,) = checked("directory", "--set", f"path={tmp_path}/absent/store")
    assert not report["ok"]
    assert report["probe"] == {"ready": False, "detail": f"{tmp_path}/absent does not exist"}
    assert report["tests"] == []


def test_check_works_beside_the_configured_place_and_leaves_nothing(tmp_path: Path) -> None:
    log = tmp_path / "log.sqlite"
    log.write_bytes(b"precious, and no database")
    config = tmp_path / "config.toml"
    config.write_text(f'[device]\nname = "Attic"\n[coordination.sqlite]\npath = "{log}"\n')
    done = run("--config", str(config), "plugin", "check", "sqlite", "--json")
    (report,) = json.loads(done.stdout)["checks"]
    assert report["ok"], report
    assert sum(test["result"] == "passed" for test in report["tests"]) > 20
    assert log.read_bytes() == b"precious, and no database"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.toml", "log.sqlite"]
