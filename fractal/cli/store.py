"""`homeserver store`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from fractal.api.errors import ExitCode
from fractal.cli import complete
from fractal.cli.output import clean, show_json, show_table
from fractal.cli.pairs import name_values
from fractal.cli.session import Session, change_options, group_option, json_option, pass_session


@click.group()
def store() -> None:
    """Say where archives are kept, and try it. STORE is a name or an id."""


@store.command("list")
@group_option
@json_option
@pass_session
def list_(session: Session, group: str | None, as_json: bool) -> None:
    """List the stores of a group."""
    session.read("store.list", {"group": group}, _show_list, as_json=as_json)


def _show_list(result: Mapping[str, Any]) -> None:
    rows = [
        (
            s["name"],
            s["backend"],
            ", ".join(f"{k}={v}" for k, v in sorted(s["config"].items())),
            ", ".join(s["apps"]),
            ", ".join(s["mirrors"]),
            s["id"],
        )
        for s in result["stores"]
    ]
    show_table(
        ("STORE", "BACKEND", "SETTINGS", "APPS", "MIRRORS", "ID"),
        rows,
        empty="No stores. Add one: homeserver store add",
    )


@store.command()
@click.argument("name", metavar="NAME")
@click.argument("backend")
@click.argument("settings", nargs=-1, metavar="[KEY=VALUE]...")
@group_option
@change_options
@pass_session
def add(
    session: Session, name: str, backend: str, settings: tuple[str, ...], group: str | None, **options: Any
) -> None:
    """Add a store for archives, e.g. `store add Shelf directory path=/mnt/shelf`.

    All devices of the group use it with the same settings. See `homeserver plugin list` for backends.
    """
    session.change(
        "store.add",
        {"group": group, "name": name, "backend": backend, "config": name_values("setting", settings)},
        lambda r: click.echo(
            f"Store {clean(r['name'])} is added."
            + (
                ""
                if r["fencing"]
                else f" It cannot fence{_because(r)}: there is no automatic failover on it."
            )
        ),
        options=options,
    )


@store.command()
@click.argument("name", metavar="STORE", shell_complete=complete.STORE)
@group_option
@json_option
@pass_session
def check(session: Session, name: str, group: str | None, as_json: bool) -> int:
    """Try a store from this device. Exits 1 if it does not do what it must."""
    result = session.call("store.check", {"group": group, "store": name})
    bad = [step for step in result["steps"] if not step["ok"]]
    if as_json:
        show_json(result)
    else:
        show_table(
            ("STEP", "OK", "DETAIL"),
            [(s["step"], "yes" if s["ok"] else "NO", s["detail"]) for s in result["steps"]],
        )
        fences = "fences" if result["fencing"] else f"cannot fence{_because(result)}: no automatic failover"
        click.echo(f"{clean(name)} {fences}; listings lag {result['staleness_s']:g} s at most.")
    return ExitCode.FAILED if bad else ExitCode.OK


@store.command()
@click.argument("name", metavar="STORE", shell_complete=complete.STORE)
@group_option
@change_options
@pass_session
def remove(session: Session, name: str, group: str | None, **options: Any) -> None:
    """Forget a store that no app uses. What it holds stays there."""
    session.change(
        "store.remove",
        {"group": group, "store": name},
        lambda _: click.echo(f"Store {clean(name)} is forgotten; what it holds is still there."),
        options=options,
        confirm=f"Forget the store {name}?",
    )


def _because(result: Mapping[str, Any]) -> str:
    return f" ({clean(result['weakness'])})" if result["weakness"] else ""
