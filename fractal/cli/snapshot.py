"""`homeserver snapshot`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from fractal.api.errors import ExitCode
from fractal.cli.app import AT_HELP
from fractal.cli.output import clean, moment, show_json, show_table, size
from fractal.cli.session import (
    Session,
    change_options,
    group_option,
    json_option,
    pass_session,
    wait_option,
)


@click.group()
def snapshot() -> None:
    """List, take, check and pin moments of an app. APP is a name or an id."""


@snapshot.command("list")
@click.argument("name", metavar="APP")
@group_option
@json_option
@pass_session
def list_(session: Session, name: str, group: str | None, as_json: bool) -> None:
    """List the kept moments of an app, oldest first."""
    session.read("snapshot.list", {"group": group, "app": name}, _show_list, as_json=as_json)


def _show_list(result: Mapping[str, Any]) -> None:
    rows = [
        (
            s["moment"],
            moment(s["wall_ms"]),
            s["device"],
            size(s["bytes"]),
            ", ".join(word for word in ("pinned", "branch") if s[word]),
        )
        for s in result["snapshots"]
    ]
    show_table(("MOMENT", "TIME", "DEVICE", "STORED", "REMARKS"), rows, empty="No snapshots yet.")


@snapshot.command()
@click.argument("name", metavar="APP")
@group_option
@wait_option
@change_options
@pass_session
def create(session: Session, name: str, group: str | None, wait_s: float | None, **options: Any) -> None:
    """Take a snapshot now and wait until the store has it."""
    session.change(
        "snapshot.create",
        {"group": group, "app": name, "wait_s": wait_s},
        lambda r: click.echo(clean(r["moment"]) if r["done"] else "Not stored yet: see `homeserver status`."),
        options=options,
    )


@snapshot.command()
@click.argument("name", metavar="APP")
@group_option
@click.option("--deep", is_flag=True, help="Read and authenticate every byte.")
@json_option
@pass_session
def verify(session: Session, name: str, group: str | None, deep: bool, as_json: bool) -> int:
    """Check an app's archive in its store. Exits 1 if something is wrong with it."""
    result = session.call("snapshot.verify", {"group": group, "app": name, "deep": deep or None})
    if as_json:
        show_json(result)
    else:
        show_table(("OBJECT", "PROBLEM"), [(p["object"], p["what"]) for p in result["problems"]])
        what = f"{result['objects']} objects, {size(result['bytes'])}, {result['seconds']:.1f} s"
        click.echo(
            f"{len(result['problems'])} problems in {what}" if result["problems"] else f"All is well: {what}"
        )
    return ExitCode.FAILED if result["problems"] else ExitCode.OK


@snapshot.command()
@click.argument("name", metavar="APP")
@group_option
@click.option("--at", metavar="MOMENT", help=AT_HELP)
@click.option("--off", is_flag=True, help="Keep it no longer than the others.")
@change_options
@pass_session
def pin(session: Session, name: str, group: str | None, at: str | None, off: bool, **options: Any) -> None:
    """Keep a moment for ever, or no longer."""
    session.change(
        "snapshot.pin",
        {"group": group, "app": name, "at": at, "off": off or None},
        lambda r: click.echo(f"{clean(r['moment'])} is {'pinned' if r['pinned'] else 'not pinned'}."),
        options=options,
    )
