"""`homeserver route`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from fractal.cli import complete
from fractal.cli.output import clean, show_table
from fractal.cli.session import Session, change_options, group_option, json_option, pass_session


@click.group()
def route() -> None:
    """Lead public names to apps."""


@route.command("list")
@group_option
@json_option
@pass_session
def list_(session: Session, group: str | None, as_json: bool) -> None:
    """List the public names of a group."""
    session.read("route.list", {"group": group}, _show_list, as_json=as_json)


def _show_list(result: Mapping[str, Any]) -> None:
    rows = [
        (r["name"], r["kind"], r["app"], " ".join(p for p in (r["service"], r["port"]) if p), r["device"])
        for r in result["routes"]
    ]
    show_table(("ROUTE", "KIND", "APP", "SERVICE", "SERVED BY"), rows, empty="No routes.")


@route.command()
@click.argument("name", metavar="NAME")
@click.argument("app_name", metavar="APP", shell_complete=complete.APP)
@group_option
@click.option("--kind", type=click.Choice(["https", "tcp", "udp"]), help="[default: https]")
@click.option("--service", metavar="SERVICE", help="[default: the manifest's web service]")
@click.option("--port", metavar="PORT", help="Name of the service's port. [default: the manifest's web port]")
@change_options
@pass_session
def add(session: Session, name: str, app_name: str, group: str | None, **options: Any) -> None:
    """Lead a DNS name (or `:PORT` for TCP and UDP) to an app."""
    session.change(
        "route.add",
        {
            "group": group,
            "name": name,
            "app": app_name,
            "kind": options["kind"],
            "service": options["service"],
            "port": options["port"],
        },
        lambda r: click.echo(f"{clean(r['name'])} leads to {clean(app_name)}."),
        options=options,
    )


@route.command()
@click.argument("name", metavar="NAME")
@group_option
@change_options
@pass_session
def remove(session: Session, name: str, group: str | None, **options: Any) -> None:
    """Give a public name up."""
    session.change(
        "route.remove",
        {"group": group, "name": name},
        lambda r: click.echo(f"{clean(r['name'])} leads nowhere any more."),
        options=options,
        confirm=f"Give {name} up?",
    )
