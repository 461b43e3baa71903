"""`homeserver app`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from fractal.cli import complete
from fractal.cli.given import (
    asked,
    beside,
    given_options,
    given_values,
    is_path,
    read_text,
    sent_contexts,
    taken_along,
)
from fractal.cli.lazy import LazyGroup
from fractal.cli.output import clean, moment, show_facts, show_table
from fractal.cli.session import (
    Session,
    change_options,
    group_option,
    interval_option,
    json_option,
    pass_session,
    wait_option,
)
from fractal.cli.status import app_row, mirror_words, show_apps

AT_HELP = (
    "A moment: EPOCH.NUMBER, a time ('yesterday 10:00', 2026-05-01T12:00) or an age (2h, '3 days ago'). "
    "[default: the newest]"
)


ELSEWHERE = {
    "check": ("fractal.cli.app_check:check", "Say what a Compose file's keys come to here."),
    "logs": ("fractal.cli.app_inside:logs", "Show what an app's services print."),
    "exec": ("fractal.cli.app_inside:exec", "Run a command inside an app's service."),
    "secret": ("fractal.cli.app_secret:secret", "Print one of an app's secrets."),
    "move": ("fractal.cli.app_changes:move", "Move an app to another device while it runs."),
    "restore": ("fractal.cli.app_changes:restore", "Bring an app back to an earlier moment."),
    "fork": ("fractal.cli.app_changes:fork", "Start a second app from a moment of another."),
    "policy": ("fractal.cli.app_changes:policy", "Show how an app is treated, or change it."),
    "update": ("fractal.cli.app_changes:update", "Give an app a new manifest, values or name."),
}


@click.group(cls=LazyGroup, lazy=ELSEWHERE)
def app() -> None:
    """Install, move, restore and otherwise handle apps. APP is a name or an id."""


@app.command("install")
@click.argument("name", metavar="APP", shell_complete=complete.app_to_install)
@group_option
@click.option(
    "--device",
    metavar="DEVICE",
    shell_complete=complete.DEVICE,
    help="Where to run it. [default: the best placed device]",
)
@click.option("--as", "as_name", metavar="NAME", help="Its name in the group, if it is to differ.")
@click.option(
    "--store",
    metavar="STORE",
    shell_complete=complete.STORE,
    help="Where its archive is kept. [default: the group's only store]",
)
@click.option("--route", "routes", multiple=True, metavar="NAME", help="Public name that leads to it.")
@given_options
@click.option(
    "--ask", is_flag=True, help="Ask for every field of the manifest, not only for those that need an answer."
)
@interval_option
@wait_option
@change_options
@pass_session
def install(session: Session, name: str, group: str | None, **options: Any) -> None:
    """Install an app from a catalog, or from a manifest if APP is a path (`./app.yml`)."""
    manifest, source, given = None, None, given_values(options)
    if is_path(name):
        path, source, name = Path(name), name, Path(name).stem
        manifest = read_text(path)
        given = {**given, "files": taken_along(path, options["read"])}
        given = asked(manifest, str(path), given, everything=options["ask"], brings=beside(path))
        given["contexts"] = sent_contexts(session, manifest, path, given, options)
    else:
        given = _asked_of_catalog(session, name, given, everything=options["ask"])
    session.change(
        "app.install",
        {
            "group": group,
            "app": name,
            "manifest": manifest,
            "source": source,
            "name": options["as_name"],
            "device": options["device"],
            "store": options["store"],
            "routes": list(options["routes"]),
            **given,
            "interval_s": options["interval"],
            "wait_s": options["wait_s"],
        },
        _show_installed,
        options=options,
    )


def _asked_of_catalog(
    session: Session, name: str, given: dict[str, Any], *, everything: bool
) -> dict[str, Any]:
    """What the manifest of a catalog needs, if somebody is there to answer."""
    if not (everything or (sys.stdin.isatty() and sys.stderr.isatty())):
        return given
    found = session.call("catalog.show", {"app": name})
    given = asked(found["manifest"], name, {**given, "files": {}}, everything=everything)
    return {key: value for key, value in given.items() if key != "files"}


def _show_installed(result: Mapping[str, Any]) -> None:
    name, device = clean(result["name"]), clean(result["device"])
    click.echo(
        f"{name} runs on {device}." if result["done"] else f"{name} is being started on {device}: see status."
    )
    for step in result["plan"]:
        if idle := step["detail"].get("without effect here"):
            click.echo(f"  without effect here: {clean(idle)}")
        if reads := step["detail"].get("reads beside it"):
            click.echo(f"  read beside the manifest: {clean(reads)}")
    for route in result["routes"]:
        click.echo(f"  https://{clean(route)}/" if not route.startswith(":") else f"  port {clean(route)}")


@app.command("list")
@group_option
@click.option("--removed", is_flag=True, help="Those that were removed; their archives stay.")
@json_option
@pass_session
def list_(session: Session, group: str | None, removed: bool, as_json: bool) -> None:
    """List the apps of a group."""
    show = _show_removed if removed else lambda result: show_apps(result["apps"])
    session.read("app.list", {"group": group}, show, as_json=as_json)


def _show_removed(result: Mapping[str, Any]) -> None:
    show_table(
        ("ID", "APP", "STORE"),
        [(a["id"], a["name"], a["store"]) for a in result["removed"]],
        empty="No app was removed.",
    )


@app.command()
@click.argument("name", metavar="APP", shell_complete=complete.APP)
@group_option
@json_option
@pass_session
def show(session: Session, name: str, group: str | None, as_json: bool) -> None:
    """Show everything about an app."""
    session.read("app.show", {"group": group, "app": name}, _show_app, as_json=as_json)


def _show_app(result: Mapping[str, Any]) -> None:
    one, policy = result["app"], result["policy"]
    row = app_row(one)
    show_facts(
        {
            "Name": one["name"],
            "Id": one["id"],
            "Device": one["device"],
            "Epoch": row[2],
            "Health": row[3],
            "Desired": one["desired"],
            "Last snapshot": row[4],
            "Would lose": row[5],
            "Standby": row[6],
            "Store": result["store"],
            "Mirrors": "; ".join(f"{m['store']} {mirror_words(m)}" for m in one["mirrors"]),
            "Routes": ", ".join(result["routes"]),
            "Volumes": ", ".join(result["volumes"]),
            "Secrets": ", ".join(result["secrets"]),
            "Failover": f"{policy['failover']}, {policy['on_isolation']} on isolation",
            "Interval": f"{policy['interval_s']:g} s",
            "Note": one["note"],
        }
    )
    click.echo()
    show_table(
        ("SERVICE", "IMAGE", "HEALTH", "RESTARTS", "DETAIL"),
        [(s["name"], s["image"], s["health"], str(s["restarts"]), s["detail"]) for s in result["services"]],
    )
    if result["branches"]:
        click.echo()
        show_table(
            ("BRANCH", "DEVICE", "TIME"),
            [(b["moment"], b["device"], moment(b["wall_ms"])) for b in result["branches"]],
        )


def _wish(verb: str, help_text: str, done: str, confirm: str = "") -> None:
    """A command that wishes something of one app and waits for it."""

    @app.command(verb, help=help_text)
    @click.argument("name", metavar="APP", shell_complete=complete.APP)
    @group_option
    @wait_option
    @change_options
    @pass_session
    def wish(session: Session, name: str, group: str | None, wait_s: float | None, **options: Any) -> None:
        session.change(
            f"app.{verb}",
            {"group": group, "app": name, "wait_s": wait_s},
            lambda result: say_done(result, f"{name}: {done}."),
            options=options,
            confirm=confirm.format(name=name),
        )


def say_done(result: Mapping[str, Any], text: str) -> None:
    """The outcome of a wish; one that is not fulfilled yet is not lost."""
    click.echo(clean(text) if result["done"] else "Not yet; the agents go on: see `homeserver status`.")


_wish("start", "Let an app run.", "running")
_wish("stop", "Stop an app and keep it stopped.", "stopped")
_wish("restart", "Stop an app and start it again where it is.", "restarted")


@app.command()
@click.argument("name", metavar="APP", shell_complete=complete.APP)
@group_option
@click.option("--force", is_flag=True, help="Also if its last snapshot cannot be stored before.")
@click.option(
    "--discard", is_flag=True, help="Of an app removed before: delete what this device could not store."
)
@wait_option
@change_options
@pass_session
def remove(session: Session, name: str, group: str | None, wait_s: float | None, **options: Any) -> None:
    """Stop an app, store its last snapshot and remove it. Its archive stays in the store.

    The last snapshot is waited for in any case, two minutes unless --wait says more or less; what cannot be stored keeps the app from
    being removed, unless you say --force.
    """
    params = {
        "group": group,
        "app": name,
        "force": options["force"] or None,
        "discard": options["discard"] or None,
        "wait_s": wait_s,
    }
    discard = options["discard"]
    session.change(
        "app.remove",
        params,
        lambda r: say_done(
            r,
            f"{name}: what no store has is deleted here."
            if discard
            else f"{name}: removed; its archive stays in the store.",
        ),
        options=options,
        confirm=f"Delete what no store has of {name}?" if discard else f"Remove {name}?",
    )
