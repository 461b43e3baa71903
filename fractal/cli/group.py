"""`homeserver group`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from fractal.api.errors import ExitCode
from fractal.cli import complete
from fractal.cli.output import clean, moment, show_facts, show_table
from fractal.cli.session import Session, change_options, group_option, json_option, pass_session
from fractal.cli.status import DEVICE_HEAD, device_row


@click.group()
def group() -> None:
    """Create, show, join and leave groups."""


@group.command()
@click.argument("name")
@click.option("--member", metavar="NAME", help="Your own name in it. [default: your user's]")
@click.option("--timers", type=click.Choice(["standard", "fast", "patient"]), help="How quick failover is.")
@change_options
@pass_session
def create(session: Session, name: str, member: str | None, timers: str | None, **options: Any) -> None:
    """Create a group with this device as its first."""
    session.change(
        "group.create",
        {"name": name, "member": member or user_name(), "timers": timers},
        lambda r: click.echo(
            f"Group {clean(r['name'])} is there. Add a store: homeserver store add; then a device: homeserver group invite."
        ),
        options=options,
    )


def user_name() -> str | None:
    """Name of the person at the keyboard, None if it cannot be told."""
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return None


@group.command("list")
@json_option
@pass_session
def list_(session: Session, as_json: bool) -> None:
    """List the groups that this device is in."""
    session.read("group.list", {}, _show_list, as_json=as_json)


def _show_list(result: Mapping[str, Any]) -> None:
    rows = [
        (g["name"], str(g["members"]), str(g["devices"]), str(g["apps"]), g["id"]) for g in result["groups"]
    ]
    show_table(("GROUP", "MEMBERS", "DEVICES", "APPS", "ID"), rows, empty="This device is in no group.")


@group.command()
@click.argument("name", required=False, metavar="[GROUP]")
@json_option
@pass_session
def show(session: Session, name: str | None, as_json: bool) -> None:
    """Show a group's settings, members, devices and open invitations."""
    session.read("group.show", {"group": name}, _show_group, as_json=as_json)


def _show_group(result: Mapping[str, Any]) -> None:
    one, timers = result["group"], result["timers"]
    show_facts(
        {
            "Name": one["name"],
            "Id": one["id"],
            "Log": f"{one['position']} entries, key generation {result['key_generation']}",
            "Timers": f"{timers['profile']}: suspects after {timers['patience_s']:g} s, proof lasts {timers['proof_s']:g} s",
            "Stores": ", ".join(result["stores"]),
        }
    )
    click.echo()
    show_members(result["members"])
    click.echo()
    show_table(DEVICE_HEAD, [device_row(d) for d in result["devices"]])
    if result["invitations"]:
        click.echo()
        show_table(
            ("INVITATION", "FOR", "BY", "UNTIL"),
            [
                (i["id"], i["member"] or f"a new {i['role']}", i["by"], moment(i["expires_ms"]))
                for i in result["invitations"]
            ],
        )


def show_members(members: list[Mapping[str, Any]]) -> None:
    """The table of members."""
    show_table(
        ("MEMBER", "ROLE", "DEVICES", "ID"),
        [(m["name"], m["role"], ", ".join(m["devices"]), m["id"]) for m in members],
    )


@group.command()
@click.argument("who", required=False, metavar="[ID]")
@group_option
@click.option("--new-member", is_flag=True, help="For a new member, not for one more device of yours.")
@click.option("--contact", metavar="ID", help="Who they are to the coordination backend, where it must know.")
@click.option("--role", type=click.Choice(["member", "admin", "owner"]), help="Role of a new member.")
@click.option("--valid", type=click.FloatRange(min=60), metavar="SECONDS", help="How long. [default: a day]")
@change_options
@pass_session
def invite(session: Session, who: str | None, group: str | None, **options: Any) -> None:
    """Make a code with which one device can ask to join: one more of yours, or a new member's.

    With an ID, of a person at the coordination backend (like @anna:example.org), it is for that person as a new member.
    """
    if who and options["contact"]:
        raise click.UsageError("ID and --contact say the same: give one of them.")
    session.change(
        "group.invite",
        {
            "group": group,
            "contact": who or options["contact"],
            "new_member": options["new_member"] or bool(who) or None,
            "role": options["role"],
            "valid_s": options["valid"],
        },
        _show_code,
        options=options,
    )


def _show_code(result: Mapping[str, Any]) -> None:
    click.echo(result["code"])
    click.echo(
        f"\nOn the new device: homeserver group join CODE (until {moment(result['expires_ms'])})."
        "\nThen here: homeserver device list, and homeserver device approve NAME.",
        err=True,
    )


@group.command()
@click.argument("code")
@click.option(
    "--member", metavar="NAME", help="Your name in the group, if you are new. [default: your user's]"
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for approval; 0 only asks.",
)
@change_options
@pass_session
def join(session: Session, code: str, member: str | None, timeout: float, **options: Any) -> int:
    """Ask to join a group, and wait until somebody there approves. Exits 7 if nobody has yet."""
    result = session.change(
        "group.join",
        {"code": code, "member": member or user_name(), "wait_s": timeout},
        _show_joined,
        options=options,
    )
    return ExitCode.PARTIAL if result.get("state") == "waiting" else ExitCode.OK


def _show_joined(result: Mapping[str, Any]) -> None:
    if result["state"] == "joined":
        click.echo(f"This device is in {clean(result['name'])}.")
    else:
        click.echo(
            f"Not approved yet. This device's id is {result['device']}. Run the same command to wait on."
        )


@group.command()
@click.argument("name", metavar="GROUP", shell_complete=complete.GROUP)
@click.option("--force", is_flag=True, help="Even if it still owns apps or cannot reach the log.")
@change_options
@pass_session
def leave(session: Session, name: str, force: bool, **options: Any) -> None:
    """Take this device out of a group."""
    session.change(
        "group.leave",
        {"group": name, "force": force or None},
        lambda _: click.echo("This device has left the group."),
        options=options,
        confirm=f"Take this device out of {name}?",
    )
