"""`homeserver agent`."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from fractal.cli.locate import SYSTEM_CONFIG, user_config
from fractal.cli.output import seconds, show_facts, show_json
from fractal.cli.session import Session, json_option, pass_session

UNIT = "homeserver.service"


@click.group()
def agent() -> None:
    """Run the agent, or see how it is."""


@agent.command()
@pass_session
def run(session: Session) -> None:
    """Run this device's agent in the foreground until SIGTERM or SIGINT."""
    from fractal.agent.main import run as run_agent

    run_agent(session.config)


@agent.command()
@json_option
@pass_session
def status(session: Session, as_json: bool) -> None:
    """Show how this device's agent is."""
    session.read("agent.status", {}, _show_status, as_json=as_json)


def _show_status(result: Mapping[str, Any]) -> None:
    show_facts(
        {
            "Device": f"{result['name']} ({result['device']})",
            "Version": result["version"],
            "Running": f"for {seconds(result['up_s'])}, process {result['pid']}",
            "Guard": result["guard"],
            "Groups": str(result["groups"]),
            "Configuration": result["config"],
            **{f"Backend: {kind}": name for kind, name in result["backends"].items()},
            **{f"Job: {job}": state for job, state in result["jobs"].items()},
        }
    )


@agent.command()
@click.option("--user", "as_user", is_flag=True, help="For your own systemd instead of the system's.")
@click.option("--force", is_flag=True, help="Replace a unit that is different.")
@click.option("-n", "--dry-run", is_flag=True, help="Only print the unit.")
@json_option
@pass_session
def install(session: Session, as_user: bool, force: bool, dry_run: bool, as_json: bool) -> None:
    """Write a systemd unit for the agent and say what to do with it."""
    path = unit_path(as_user=as_user)
    text = unit_text(program(), session.config_path, as_user=as_user)
    if not dry_run:
        _write_unit(path, text, force=force)
    missing = missing_configuration(session, as_user=as_user)
    if missing is not None:
        click.echo(
            f"There is no configuration at {missing} yet: without one the agent does not start.", err=True
        )
    steps = next_steps(as_user=as_user, missing=missing)
    if as_json:
        show_json({"dry_run": dry_run, "path": str(path), "unit": text, "next": steps})
        return
    click.echo(f"# {path}\n{text}" if dry_run else f"Wrote {path}. Now:")
    if not dry_run:
        for step in steps:
            click.echo(f"  {step}")


def unit_path(*, as_user: bool) -> Path:
    """Where systemd looks for an administrator's, or a user's, own units."""
    if not as_user:
        return Path("/etc/systemd/system") / UNIT
    base = os.environ.get("XDG_CONFIG_HOME") or Path("~/.config").expanduser()
    return Path(base) / "systemd" / "user" / UNIT


def program() -> Path:
    """The command that is running now: beside its Python, or where the shell finds it. Raises ClickException if nowhere."""
    beside = Path(sys.executable).with_name("homeserver")
    if beside.exists():
        return beside
    # Python's own folder and that of its scripts differ outside of virtual environments.
    found = shutil.which("homeserver")
    if found is None:
        raise click.ClickException(
            f"there is no command homeserver beside {sys.executable} nor in PATH, so a unit could not start it:"
            " install the package into a virtual environment, or add its folder to PATH"
        )
    return Path(found).absolute()


def unit_text(command: Path, config: str | None, *, as_user: bool) -> str:
    """The unit for that command and configuration. Raises click's usage error for a path that a unit cannot hold."""
    from importlib.resources import files

    chosen = "" if config is None else f" --config {_quoted(Path(config).resolve())}"
    text = files("fractal.cli").joinpath("data", UNIT).read_text(encoding="utf-8")
    text = text.replace("/usr/bin/homeserver", _quoted(command) + chosen)
    if as_user:
        text = text.replace("multi-user.target", "default.target")
        text = "\n".join(line for line in text.split("\n") if "network-online" not in line)
    return text


def _quoted(path: Path) -> str:
    text = str(path)
    if not text.isprintable() or '"' in text or "\\" in text:
        raise click.UsageError(f"{text!r} cannot be written into a systemd unit: choose another path")
    text = text.replace("%", "%%").replace("$", "$$")
    return f'"{text}"' if " " in text else text


def _write_unit(path: Path, text: str, *, force: bool) -> None:
    try:
        if path.exists() and path.read_text(encoding="utf-8") != text and not force:
            raise click.ClickException(f"{path} exists and is different: look at it, then say --force")
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f".{path.name}.new")
        scratch.write_text(text, encoding="utf-8")
        scratch.replace(path)
    except OSError as error:
        hint = ": run it as root, or say --user" if isinstance(error, PermissionError) else ""
        raise click.ClickException(f"cannot write {path}: {error.strerror}{hint}") from error


def missing_configuration(session: Session, *, as_user: bool) -> Path | None:
    """The configuration that the unit's agent would look for in vain; None if there is one."""
    if session.config_path is not None:
        path = Path(session.config_path)
    else:
        path = user_config() if as_user and not SYSTEM_CONFIG.is_file() else SYSTEM_CONFIG
    return None if path.is_file() else path


def next_steps(*, as_user: bool, missing: Path | None = None) -> list[str]:
    """Commands that a person runs next. `missing`: the configuration, if it has to be made first."""
    if missing is not None:
        make = f"homeserver --config {shlex.quote(str(missing))} config init"
        return [make, *next_steps(as_user=as_user)]
    if as_user:
        return [
            "systemctl --user daemon-reload",
            "systemctl --user enable --now homeserver",
            "loginctl enable-linger    # so that it runs while you are logged out",
        ]
    return ["systemctl daemon-reload", "systemctl enable --now homeserver", "homeserver status"]
