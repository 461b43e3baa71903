"""`homeserver member`."""

from __future__ import annotations

from typing import Any

import click

from fractal.cli.output import clean
from fractal.cli.session import Session, change_options, group_option, json_option, pass_session


@click.group()
def member() -> None:
    """Show members, their roles, and remove them. MEMBER is a name or an id."""


@member.command("list")
@group_option
@json_option
@pass_session
def list_(session: Session, group: str | None, as_json: bool) -> None:
    """List the members of a group."""
    from fractal.cli.group import show_members

    session.read("member.list", {"group": group}, lambda r: show_members(r["members"]), as_json=as_json)


@member.command()
@click.argument("name", metavar="MEMBER")
@group_option
@change_options
@pass_session
def remove(session: Session, name: str, group: str | None, **options: Any) -> None:
    """Take a member and all their devices out of the group and renew the keys."""
    session.change(
        "member.remove",
        {"group": group, "member": name},
        lambda r: click.echo(f"Removed; the group's key is now generation {r['key_generation']}."),
        options=options,
        confirm=f"Remove {name} and all their devices from the group?",
    )


@member.command()
@click.argument("name", metavar="MEMBER")
@click.argument("new_role", metavar="ROLE", type=click.Choice(["member", "admin", "owner"]))
@group_option
@change_options
@pass_session
def role(session: Session, name: str, new_role: str, group: str | None, **options: Any) -> None:
    """Make a member an `owner`, `admin` or `member`."""
    session.change(
        "member.role",
        {"group": group, "member": name, "role": new_role},
        lambda r: click.echo(f"{clean(name)} is now {r['role']}."),
        options=options,
    )
