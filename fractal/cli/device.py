"""`homeserver device`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from fractal.cli import complete
from fractal.cli.output import clean, show_table
from fractal.cli.session import Session, change_options, group_option, json_option, pass_session
from fractal.cli.status import DEVICE_HEAD, device_row, show_apps


@click.group()
def device() -> None:
    """Approve, rename, drain and remove devices. DEVICE is a name or an id."""


@device.command("list")
@group_option
@json_option
@pass_session
def list_(session: Session, group: str | None, as_json: bool) -> None:
    """List the devices of a group and those that ask to join."""
    session.read("device.list", {"group": group}, _show_list, as_json=as_json)


def _show_list(result: Mapping[str, Any]) -> None:
    show_table(
        (*DEVICE_HEAD, "ID"),
        [(*device_row(d), d["id"]) for d in result["devices"]],
    )
    if result["pending"]:
        click.echo("\nAsking to join; compare the id with what the device itself shows:")
        show_table(
            ("DEVICE", "MEMBER", "INVITED BY", "ID"),
            [
                (p["name"], p["member"] + (" (new)" if p["new_member"] else ""), p["invited_by"], p["id"])
                for p in result["pending"]
            ],
        )


@device.command()
@click.argument("name", metavar="DEVICE", shell_complete=complete.PENDING)
@group_option
@click.option("--as", "as_name", metavar="NAME", help="Name to give it, if it is to differ.")
@change_options
@pass_session
def approve(session: Session, name: str, group: str | None, as_name: str | None, **options: Any) -> None:
    """Let a device in that asks to join."""
    session.change(
        "device.approve",
        {"group": group, "device": name, "name": as_name},
        lambda r: click.echo(f"{clean(r['name'])} is in the group."),
        options=options,
    )


@device.command()
@click.argument("name", metavar="DEVICE", shell_complete=complete.DEVICE)
@click.argument("new_name", metavar="NAME")
@group_option
@change_options
@pass_session
def rename(session: Session, name: str, new_name: str, group: str | None, **options: Any) -> None:
    """Give a device another name."""
    session.change(
        "device.rename",
        {"group": group, "device": name, "name": new_name},
        lambda r: click.echo(f"The device is now called {clean(r['name'])}."),
        options=options,
    )


@device.command()
@click.argument("name", metavar="DEVICE", shell_complete=complete.DEVICE)
@group_option
@change_options
@pass_session
def remove(session: Session, name: str, group: str | None, **options: Any) -> None:
    """Take a device out of the group and renew the keys that it knew."""
    session.change(
        "device.remove",
        {"group": group, "device": name},
        lambda r: click.echo(f"Removed; the group's key is now generation {r['key_generation']}."),
        options=options,
        confirm=f"Remove {name} from the group?",
    )


@device.command()
@click.argument("name", metavar="DEVICE", shell_complete=complete.DEVICE)
@group_option
@click.option("--off", is_flag=True, help="Let it take apps again.")
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait until it owns no app.",
)
@change_options
@pass_session
def drain(session: Session, name: str, group: str | None, off: bool, wait_s: float, **options: Any) -> None:
    """Move all apps away from a device and let it take none."""
    session.change(
        "device.drain",
        {"group": group, "device": name, "off": off or None, "wait_s": wait_s},
        _show_drained,
        options=options,
    )


def _show_drained(result: Mapping[str, Any]) -> None:
    if not result["draining"]:
        click.echo("The device takes apps again.")
    elif result["apps"]:
        click.echo("The device takes no more apps. It still owns:")
        show_apps(result["apps"])
    else:
        click.echo("The device owns no app and takes none.")
