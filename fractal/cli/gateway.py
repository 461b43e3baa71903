"""`homeserver gateway`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from fractal.cli import complete
from fractal.cli.output import clean, seconds, show_table, yes_no
from fractal.cli.session import Session, change_options, group_option, json_option, pass_session


@click.group()
def gateway() -> None:
    """Say which devices carry traffic from outside. DEVICE is a name or an id."""


@gateway.command("list")
@group_option
@json_option
@pass_session
def list_(session: Session, group: str | None, as_json: bool) -> None:
    """List the gateways of a group."""
    session.read("gateway.list", {"group": group}, _show_list, as_json=as_json)


def _show_list(result: Mapping[str, Any]) -> None:
    rows = [
        (g["name"], g["address"], yes_no(g["up"]), seconds(g["last_seen_s"]), g["detail"])
        for g in result["gateways"]
    ]
    show_table(
        ("GATEWAY", "ADDRESS", "UP", "LAST SEEN", "DETAIL"),
        rows,
        empty="No gateways. Make a device one: homeserver gateway add DEVICE --address HOST",
    )


@gateway.command()
@click.argument("name", metavar="DEVICE", shell_complete=complete.DEVICE)
@group_option
@click.option("--address", metavar="HOST", help="Its public host name or address.")
@change_options
@pass_session
def add(session: Session, name: str, group: str | None, address: str | None, **options: Any) -> None:
    """Make a device of the group a gateway."""
    session.change(
        "gateway.add",
        {"group": group, "device": name, "address": address},
        lambda _: click.echo(f"{clean(name)} is a gateway."),
        options=options,
    )


@gateway.command()
@click.argument("name", metavar="DEVICE", shell_complete=complete.DEVICE)
@group_option
@change_options
@pass_session
def remove(session: Session, name: str, group: str | None, **options: Any) -> None:
    """Let a device be a gateway no longer."""
    session.change(
        "gateway.remove",
        {"group": group, "device": name},
        lambda _: click.echo(f"{clean(name)} is no gateway any more."),
        options=options,
        confirm=f"Stop using {name} as a gateway?",
    )
