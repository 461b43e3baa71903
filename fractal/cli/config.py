"""`homeserver config`: needs no agent."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fractal.api.errors import Conflict, ExitCode, FractalError
from fractal.cli.output import clean, show_facts, show_json
from fractal.cli.session import Session, change_options, json_option, pass_session

if TYPE_CHECKING:
    from fractal.config import DeviceConfig

HIDDEN = "(hidden)"


@click.group()
def config() -> None:
    """Check, show and make this device's configuration."""


@config.command()
@json_option
@pass_session
def check(session: Session, as_json: bool) -> int:
    """Tell everything that is wrong with the configuration, each with its line.

    Exit status 3 if anything is. Fit for ExecStartPre= of a systemd unit.
    """
    from fractal.config import ConfigError, load

    path = session.config
    try:
        load(path)
    except ConfigError as error:
        problems = [{"line": p.line, "key": p.key, "message": p.message} for p in error.problems]
        if as_json:
            show_json({"file": str(path), "ok": False, "problems": problems})
        else:
            click.echo("\n".join(clean(line) for line in str(error).splitlines()), err=True)
        return ExitCode.CONFIG
    if as_json:
        show_json({"file": str(path), "ok": True, "problems": []})
    else:
        click.echo(f"{path} is sound.")
    return ExitCode.OK


@config.command()
@json_option
@pass_session
def show(session: Session, as_json: bool) -> None:
    """Print the configuration with every default filled in. Secrets are hidden."""
    from fractal.config import load

    document = describe(load(session.config))
    if as_json:
        show_json(document)
        return
    show_facts(dict(_flat(document)))


@config.command()
@click.option("--name", metavar="NAME", help="What people call this device. [default: the host's name]")
@click.option("--state-dir", metavar="DIR", help="Folder for all that must survive a restart.")
@change_options
@pass_session
def init(session: Session, name: str | None, state_dir: str | None, **options: Any) -> None:
    """Write a first configuration with every setting explained. Never overwrites one."""
    import platform

    from fractal.config.schema import sample
    from fractal.plugins import Plugins

    path = _new_path(session)
    state = Path(state_dir).absolute() if state_dir else _default_state()
    text = sample(name or platform.node() or "device", state, Plugins.discover())
    plan = [{"what": f"Write {path}", "detail": {"name": name or platform.node(), "state_dir": str(state)}}]
    if not options["dry_run"]:
        _write_new(path, text)
    if options["as_json"]:
        show_json({"plan": plan, "file": str(path), "done": not options["dry_run"]})
    elif options["dry_run"]:
        click.echo(text, nl=False)
    else:
        click.echo(f"Wrote {path}. Look through it, then: homeserver agent run")


@config.command()
@click.option("--json", "_as_json", is_flag=True, help="It is JSON anyway.")
def schema(_as_json: bool) -> None:
    """Print the JSON Schema of the file, with the settings of every installed plugin."""
    from fractal.config.schema import schema as make
    from fractal.plugins import Plugins

    plugins = Plugins.discover()
    plugins.all()
    show_json(make(plugins))


def describe(config: DeviceConfig) -> dict[str, Any]:
    """The configuration as plain values, laid out like the file."""
    from fractal.config.loading import SCHEMA

    device = config.device
    document: dict[str, Any] = {
        "file": str(config.path),
        "schema": SCHEMA,
        "device": {
            "name": device.name,
            "state_dir": str(device.state_dir),
            "runtime_dir": str(device.runtime_dir),
            "roles": sorted(role.value for role in device.roles),
        },
    }
    for kind in ("runtime", "snapshot", "transport", "authority", "coordination"):
        chosen = getattr(config, kind)
        document[kind] = {"backend": chosen.backend, chosen.backend: _settings(chosen.settings)}
    document["catalog"] = [
        {"backend": c.backend, "name": c.name or c.backend, **_settings(c.settings)} for c in config.catalogs
    ]
    document["store"] = {name: dict.fromkeys(table, HIDDEN) for name, table in config.stores.items()}
    document["log"] = {"level": config.log.level}
    document["plugins"] = {"enabled": list(config.plugins.enabled), "disabled": list(config.plugins.disabled)}
    return document


def _settings(settings: Any) -> dict[str, Any]:
    from fractal.config.convert import Unset, field_types
    from fractal.config.schema import plain

    return {
        name: plain(getattr(settings, name)) if field.repr else HIDDEN
        for name, (field, kind) in field_types(type(settings)).items()
        if kind is not Unset
    }


def _flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    if isinstance(value, Mapping):
        return [
            pair for key, item in value.items() for pair in _flat(item, f"{prefix}.{key}" if prefix else key)
        ]
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        return [pair for number, item in enumerate(value) for pair in _flat(item, f"{prefix}[{number}]")]
    if isinstance(value, list):
        return [(prefix, ", ".join(map(str, value)))]
    return [(prefix, "" if value is None else str(value).lower() if isinstance(value, bool) else str(value))]


def _new_path(session: Session) -> Path:
    from fractal.cli.locate import SYSTEM_CONFIG, user_config

    if session.config_path:
        return Path(session.config_path).absolute()
    return SYSTEM_CONFIG if os.geteuid() == 0 else user_config()


def _default_state() -> Path:
    from fractal.config.model import DEFAULT_STATE

    if os.geteuid() == 0:
        return DEFAULT_STATE
    base = os.environ.get("XDG_STATE_HOME") or Path("~/.local/state").expanduser()
    return Path(base) / "homeserver"


def _write_new(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise Conflict(f"{path} exists already: edit it, or name another with --config FILE") from error
    except OSError as error:
        raise FractalError(f"{path} cannot be written: {error.strerror}") from error
