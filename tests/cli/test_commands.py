"""Every command of the command line: what it asks of the agent and how it shows the answer."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from fractal.agent.control.contract import PLAN
from fractal.agent.control.names import UnknownName
from fractal.agent.control.specs import SPECS
from fractal.api.errors import ExitCode, LeaseLost
from fractal.cli.main import cli
from fractal.client import CommandError
from fractal.testing.control import SampleAgent, empty, sample

COMMANDS: dict[str, list[str]] = {
    "status.show": ["status"],
    "doctor.run": ["doctor"],
    "log.show": ["log", "show", "--tail", "5"],
    "app.install": ["app", "install", "radicale", "--device", "Kitchen"],
    "app.list": ["app", "list"],
    "app.show": ["app", "show", "cal"],
    "app.secret": ["app", "secret", "cal", "PASSWORD"],
    "app.start": ["app", "start", "cal"],
    "app.stop": ["app", "stop", "cal"],
    "app.restart": ["app", "restart", "cal"],
    "app.remove": ["app", "remove", "cal", "--yes"],
    "app.logs": ["app", "logs", "cal"],
    "app.exec": ["app", "exec", "cal", "ls", "-l"],
    "app.move": ["app", "move", "cal", "Attic"],
    "app.restore": ["app", "restore", "cal", "--at", "10m", "--yes"],
    "app.fork": ["app", "fork", "cal", "cal 2"],
    "app.policy": ["app", "policy", "cal", "--failover", "manual", "--prefer", "Attic"],
    "app.update": ["app", "update", "cal"],
    "snapshot.list": ["snapshot", "list", "cal"],
    "snapshot.create": ["snapshot", "create", "cal"],
    "snapshot.verify": ["snapshot", "verify", "cal", "--deep"],
    "snapshot.repair": ["snapshot", "repair", "cal", "--deep"],
    "snapshot.pin": ["snapshot", "pin", "cal", "--at", "3.7"],
    "snapshot.plan": ["snapshot", "plan", "cal"],
    "snapshot.prune": ["snapshot", "prune", "cal"],
    "snapshot.open": ["snapshot", "open", "cal", "--at", "yesterday 10:00"],
    "group.create": ["group", "create", "Group 1"],
    "group.list": ["group", "list"],
    "group.show": ["group", "show"],
    "group.invite": ["group", "invite", "--new-member"],
    "group.join": ["group", "join", "HS1-CODE"],
    "group.leave": ["group", "leave", "Group 1", "--yes"],
    "device.list": ["device", "list"],
    "device.approve": ["device", "approve", "Kitchen"],
    "device.rename": ["device", "rename", "Kitchen", "Raspberry Pi"],
    "device.remove": ["device", "remove", "Kitchen", "--yes"],
    "device.drain": ["device", "drain", "Kitchen", "--wait", "3"],
    "member.list": ["member", "list"],
    "member.remove": ["member", "remove", "Bob", "--yes"],
    "member.role": ["member", "role", "Bob", "admin"],
    "store.list": ["store", "list"],
    "store.add": ["store", "add", "Shelf", "directory", "path=/mnt/a b"],
    "store.check": ["store", "check", "Shelf"],
    "store.remove": ["store", "remove", "Shelf", "--yes"],
    "gateway.list": ["gateway", "list"],
    "gateway.add": ["gateway", "add", "Front door", "--address", "gw.example.org"],
    "gateway.remove": ["gateway", "remove", "Front door", "--yes"],
    "route.list": ["route", "list"],
    "route.add": ["route", "add", "cal.example.org", "cal"],
    "route.remove": ["route", "remove", "cal.example.org", "--yes"],
    "catalog.list": ["catalog", "list"],
    "catalog.show": ["catalog", "show", "radicale"],
    "catalog.add": ["catalog", "add", "ours", "/srv/apps"],
    "catalog.remove": ["catalog", "remove", "ours"],
    "agent.status": ["agent", "status"],
}
WITHOUT_GROUP = {"group.leave", "group.show", *(n for n, s in SPECS.items() if "group" not in s.params)}
NO_JSON = {"app.logs"}
AT_A_TERMINAL = {"app.terminal", "app.type"}
"""What `app exec --tty` asks for, see tests/stack/real/test_terminal.py."""


def run(config: Path, *argv: str) -> Result:
    """`homeserver ARGV...`."""
    return CliRunner().invoke(cli, ["--config", str(config), *argv])


def test_every_command_of_the_api_has_a_command_line() -> None:
    assert set(COMMANDS) == set(SPECS) - AT_A_TERMINAL


def leaf(argv: list[str]) -> click.Command:
    command: click.Command = cli
    while isinstance(command, click.Group):
        found = command.get_command(click.Context(command), argv[0])
        assert found is not None
        command, argv = found, argv[1:]
    return command


@pytest.mark.parametrize("name", COMMANDS)
def test_answers_are_shown_whatever_they_hold(config: Path, agent: SampleAgent, name: str) -> None:
    spec = SPECS[name]
    for result in (sample(spec.result), empty(spec.result)):
        agent.results[name] = result
        shown = run(config, *COMMANDS[name])
        assert shown.exception is None or isinstance(shown.exception, SystemExit), shown.output
        assert agent.last[0] == name
        assert "\x1b" not in shown.output


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - NO_JSON))
def test_json_is_the_result_itself(config: Path, agent: SampleAgent, name: str) -> None:
    argv = COMMANDS[name]
    at = 2 if name == "app.exec" else len(argv)
    shown = run(config, *argv[:at], "--json", *argv[at:])
    spec = SPECS[name]
    wanted = sample(spec.result)
    if spec.changes:
        wanted |= {"dry_run": False, "plan": [{"what": "Do it", "detail": {"to": "Kitchen"}}]}
    assert json.loads(shown.stdout) == wanted


@pytest.mark.parametrize("name", [n for n, s in SPECS.items() if s.changes])
def test_dry_run_shows_the_plan_and_asks_nothing(config: Path, agent: SampleAgent, name: str) -> None:
    argv = [word for word in COMMANDS[name] if word != "--yes"]
    shown = run(config, *argv, "--dry-run")
    assert shown.stdout == "  1. Do it\n       to: Kitchen\n"
    assert agent.last[1]["dry_run"] is True
    assert len(agent.calls) == 1


@pytest.mark.parametrize("name", [n for n, argv in COMMANDS.items() if "--yes" in argv])
def test_what_cannot_be_taken_back_is_not_done_unasked(config: Path, agent: SampleAgent, name: str) -> None:
    argv = [word for word in COMMANDS[name] if word != "--yes"]
    shown = run(config, *argv)
    assert shown.exit_code == ExitCode.USAGE
    assert "--yes" in shown.stderr
    assert agent.calls == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_common_option_is_there(name: str) -> None:
    options = {o for p in leaf(COMMANDS[name]).params for o in p.opts}
    assert "--json" in options
    assert ("--dry-run" in options) == SPECS[name].changes
    assert ("--yes" in options) == SPECS[name].changes
    assert ("--group" in options) == (name not in WITHOUT_GROUP)


def test_parameters_arrive_as_typed(config: Path, agent: SampleAgent, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hunter2\n")
    run(
        config,
        *["app", "install", "radicale", "--group", "Group 1", "--device", "Raspberry Pi", "--as", "Cal"],
        *["--route", "cal.example.org", "--env", "TZ=Europe/Berlin", "--secret-file", f"ADMIN={secret}"],
        *["--interval", "10", "--wait", "0"],
    )
    assert agent.last == (
        "app.install",
        {
            "app": "radicale",
            "group": "Group 1",
            "device": "Raspberry Pi",
            "name": "Cal",
            "routes": ["cal.example.org"],
            "env": {"TZ": "Europe/Berlin"},
            "secrets": {"ADMIN": "hunter2"},
            "interval_s": 10.0,
            "wait_s": 0.0,
        },
    )


def test_a_manifest_of_ones_own_is_sent_along(config: Path, agent: SampleAgent, tmp_path: Path) -> None:
    manifest = tmp_path / "my app.yml"
    manifest.write_text("services: {}\n")
    run(config, "app", "install", str(manifest))
    assert agent.last[1]["manifest"] == "services: {}\n"
    assert agent.last[1]["app"] == "my app"
    missing = run(config, "app", "install", "./absent.yml")
    assert missing.exit_code == ExitCode.USAGE
    assert "absent.yml" in missing.stderr


def test_env_files_beside_a_manifest_are_sent_along_and_no_others(
    config: Path, agent: SampleAgent, tmp_path: Path
) -> None:
    (tmp_path / "private").write_text("KEY=1\n")
    folder = tmp_path / "app"
    folder.mkdir()
    (folder / "own.env").write_text("A=1\n")
    (folder / "link.env").symlink_to(tmp_path / "private")
    names = "[own.env, link.env, ../private, absent.env]"
    (folder / "app.yml").write_text(f"services: {{main: {{image: x, env_file: {names}}}}}\n")
    run(config, "app", "install", str(folder / "app.yml"))
    assert agent.last[1]["files"] == {"own.env": "A=1\n"}


def test_a_separator_before_the_command_is_not_part_of_it(config: Path, agent: SampleAgent) -> None:
    agent.results["app.exec"] = {"exit_code": 0, "output": ""}
    run(config, "app", "exec", "cal", "--", "ls", "--", "x")
    assert agent.last[1]["argv"] == ["ls", "--", "x"]


def test_exec_passes_options_on_and_exits_like_its_command(config: Path, agent: SampleAgent) -> None:
    agent.results["app.exec"] = {"exit_code": 0, "output": "hi\n"}
    shown = run(config, "app", "exec", "--service", "web", "cal", "ls", "--json", "-n", "--", "x")
    assert agent.last[1]["argv"] == ["ls", "--json", "-n", "--", "x"]
    assert shown.stdout == "hi\n"


def test_progress_goes_to_stderr_and_can_be_silenced(config: Path, agent: SampleAgent) -> None:
    assert "working" in run(config, "app", "list").stderr
    shown = run(config, "--quiet", "app", "list")
    assert shown.stderr == ""


def test_pairs_must_be_pairs(config: Path, agent: SampleAgent) -> None:
    for bad in (["path"], ["=x"], ["a=1", "a=2"]):
        assert run(config, "store", "add", "Shelf", "directory", *bad).exit_code == ExitCode.USAGE
    assert agent.calls == []


def test_the_agents_error_is_ours(config: Path, agent: SampleAgent) -> None:
    agent.errors["app.list"] = LeaseLost("app cal: epoch 3 is over")
    shown = run(config, "app", "list")
    assert isinstance(shown.exception, CommandError)
    assert shown.exception.exit_code == ExitCode.CONFLICT
    agent.errors["app.show"] = UnknownName("no app 'cla': did you mean 'cal'?", ["cal"])
    shown = run(config, "app", "show", "cla")
    assert isinstance(shown.exception, CommandError)
    assert (shown.exception.code, shown.exception.candidates) == ("not_found", ("cal",))


def test_joining_that_is_not_approved_yet_is_partial(config: Path, agent: SampleAgent) -> None:
    agent.results["group.join"] = {"state": "waiting", "group": "a1", "name": "", "device": "b2"}
    shown = exit_code(config, "group", "join", "HS1-CODE", "--timeout", "0")
    assert shown == ExitCode.PARTIAL


def exit_code(config: Path, *argv: str) -> int:
    """The number that `homeserver` would exit with."""
    return int(cli.main(["--config", str(config), *argv], standalone_mode=False) or 0)


def test_unknown_commands_get_a_suggestion(config: Path, agent: SampleAgent) -> None:
    shown = run(config, "statsu")
    assert shown.exit_code == ExitCode.USAGE
    assert "status" in shown.stderr


def test_tables_line_up_whatever_is_in_them(config: Path, agent: SampleAgent) -> None:
    state = empty(SPECS["group.list"].result)
    state["groups"] = [
        {"id": "a1", "name": "家族", "members": 1, "devices": 10, "apps": 0},
        {"id": "b2", "name": "Grüße", "members": 2, "devices": 1, "apps": 7},
    ]
    agent.results["group.list"] = state
    lines = run(config, "group", "list").stdout.splitlines()
    assert lines == [
        "GROUP  MEMBERS  DEVICES  APPS  ID",
        "家族   1        10       0     a1",
        "Grüße  2        1        7     b2",
    ]


def test_every_plan_field_is_documented_once() -> None:
    for spec in SPECS.values():
        assert set(PLAN) <= set(spec.result) or not spec.changes
