"""`homeserver status`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from fractal.cli.output import clean, seconds, show_table, yes_no
from fractal.cli.session import Session, group_option, json_option, pass_session

APP_HEAD = ("APP", "DEVICE", "EPOCH", "HEALTH", "SNAPSHOT", "WOULD LOSE", "STANDBY", "ROUTE")
DEVICE_HEAD = ("DEVICE", "MEMBER", "ROLES", "ONLINE", "LAST SEEN", "AGENT")


@click.command()
@group_option
@json_option
@pass_session
def status(session: Session, group: str | None, as_json: bool) -> None:
    """Show how every group, device and app is.

    WOULD LOSE is how much data would be gone if the app's device broke now; STANDBY is who has a warm copy, and how far behind it is.
    """
    session.read("status.show", {"group": group}, show, as_json=as_json)


def show(result: Mapping[str, Any]) -> None:
    """All groups, one after the other."""
    if not result["groups"]:
        click.echo(
            "This device is in no group. Create one: homeserver group create NAME. Or join one: homeserver group join CODE."
        )
    for number, one in enumerate(result["groups"]):
        if number:
            click.echo()
        _show_group(one)


def _show_group(one: Mapping[str, Any]) -> None:
    group = one["group"]
    click.echo(clean(group["name"]))
    for alarm in group["alarms"]:
        click.echo(f"  ! {clean(alarm)}")
    if group["pending"]:
        click.echo(f"  {group['pending']} asking to join: see `homeserver device list`")
    click.echo()
    show_table(DEVICE_HEAD, [device_row(d) for d in one["devices"]])
    click.echo()
    show_apps(one["apps"])


def show_apps(apps: Sequence[Mapping[str, Any]]) -> None:
    """The table of apps, and below it what is to be said about some."""
    show_table(
        APP_HEAD, [app_row(a) for a in apps], empty="No apps. Install one: homeserver app install NAME"
    )
    for app in apps:
        if app["note"]:
            click.echo(f"  ! {clean(app['name'])}: {clean(app['note'])}")
        for mirror in app["mirrors"]:
            if mirror["behind"] != 0 or mirror["problem"]:
                click.echo(
                    f"  - {clean(app['name'])}: mirror {clean(mirror['store'])} {mirror_words(mirror)}"
                )
        for name in app["unarchived"]:
            click.echo(
                f"  - {clean(app['name'])}: image {clean(name)} is not in the store yet: only a registry has it"
            )
        for other in app["excluded"]:
            click.echo(f"  - {clean(app['name'])}: not on {clean(other['device'])}: {clean(other['reason'])}")


def mirror_words(mirror: Mapping[str, Any]) -> str:
    """How far a mirror is behind."""
    if mirror["behind"] == 0 and not mirror["problem"]:
        return "is level"
    count = mirror["behind"]
    words = "was not compared yet" if count is None else f"lacks {count} record{'' if count == 1 else 's'}"
    if mirror["since_s"] is not None:
        words += f", for {seconds(mirror['since_s'])}"
    return f"{words}: {clean(mirror['problem'])}" if mirror["problem"] else words


def app_row(app: Mapping[str, Any]) -> tuple[str, ...]:
    """One app as a row under `APP_HEAD`."""
    health = "frozen" if app["frozen"] else app["health"]
    if app["moving_to"]:
        health += f", moving to {app['moving_to']}"
    standby = ", ".join(
        f"{s['device']} ({'no copy yet' if s['behind_s'] is None else seconds(s['behind_s']) + ' behind'})"
        for s in app["standby"]
    )
    return (
        app["name"],
        app["device"],
        str(app["epoch"]),
        health,
        "" if app["last_snapshot_s"] is None else f"{seconds(app['last_snapshot_s'])} ago",
        seconds(app["would_lose_s"]),
        standby,
        app["route"],
    )


def device_row(device: Mapping[str, Any]) -> tuple[str, ...]:
    """One device as a row under `DEVICE_HEAD`."""
    seen = "now" if device["this"] else seconds(device["last_seen_s"])
    return (
        device["name"] + (" (this)" if device["this"] else ""),
        device["member"],
        ", ".join(device["roles"]) + (" draining" if device["draining"] else ""),
        yes_no(device["online"]),
        seen if seen in ("now", "-") else f"{seen} ago",
        device["version"],
    )
