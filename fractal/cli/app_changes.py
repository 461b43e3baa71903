"""`homeserver app move`, `restore`, `fork`, `policy` and `update`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from fractal.cli import complete
from fractal.cli.app import AT_HELP, say_done
from fractal.cli.given import given_options, given_values, read_text, sent_contexts, taken_along
from fractal.cli.output import clean, show_facts, size
from fractal.cli.session import (
    Session,
    change_options,
    group_option,
    interval_option,
    pass_session,
    wait_option,
)

at_option = click.option("--at", metavar="MOMENT", help=AT_HELP)


@click.command()
@click.argument("name", metavar="APP", shell_complete=complete.APP)
@click.argument("device", shell_complete=complete.DEVICE)
@group_option
@wait_option
@change_options
@pass_session
def move(session: Session, name: str, device: str, group: str | None, **options: Any) -> None:
    """Move an app to another device while it runs."""
    session.change(
        "app.move",
        {"group": group, "app": name, "device": device, "wait_s": options["wait_s"]},
        lambda result: say_done(result, f"{name} runs on {result['device']}."),
        options=options,
    )


@click.command()
@click.argument("name", metavar="APP", shell_complete=complete.APP)
@group_option
@at_option
@wait_option
@change_options
@pass_session
def restore(session: Session, name: str, group: str | None, **options: Any) -> None:
    """Bring an app back to an earlier moment. What it holds now is kept as a snapshot first."""
    session.change(
        "app.restore",
        {"group": group, "app": name, "at": options["at"], "wait_s": options["wait_s"]},
        lambda result: say_done(result, f"{name} is as it was at {result['moment']}."),
        options=options,
        confirm=f"Bring {name} back?",
    )


@click.command()
@click.argument("name", metavar="APP", shell_complete=complete.APP_OR_REMOVED)
@click.argument("new_name", metavar="NAME")
@group_option
@at_option
@click.option(
    "--device",
    metavar="DEVICE",
    shell_complete=complete.DEVICE,
    help="Where to run it. [default: the best placed device]",
)
@wait_option
@change_options
@pass_session
def fork(session: Session, name: str, new_name: str, group: str | None, **options: Any) -> None:
    """Start a second app, NAME, from a moment of APP."""
    session.change(
        "app.fork",
        {
            "group": group,
            "app": name,
            "name": new_name,
            "at": options["at"],
            "device": options["device"],
            "wait_s": options["wait_s"],
        },
        lambda result: say_done(result, f"{result['name']} runs on {result['device']}."),
        options=options,
    )


@click.command()
@click.argument("name", metavar="APP", shell_complete=complete.APP)
@group_option
@click.option(
    "--failover", type=click.Choice(["automatic", "manual"]), help="Who may move it when its device dies."
)
@click.option(
    "--on-isolation", type=click.Choice(["freeze", "keep"]), help="What it does when its device is cut off."
)
@interval_option
@click.option("--standby", type=click.IntRange(min=0, max=16), metavar="COUNT", help="How many warm copies.")
@click.option(
    "--prefer",
    "devices",
    multiple=True,
    metavar="DEVICE",
    shell_complete=complete.DEVICE,
    help="Preferred device; repeat, best first.",
)
@click.option(
    "--trust", type=click.Choice(["group", "member", "list"]), help="Whose devices get the app's key."
)
@click.option(
    "--keep-all", type=click.FloatRange(min=0), metavar="HOURS", help="How long every snapshot stays."
)
@click.option(
    "--keep-hourly", type=click.IntRange(0, 1000), metavar="COUNT", help="How many hourly ones stay."
)
@click.option("--keep-daily", type=click.IntRange(0, 1000), metavar="COUNT", help="How many daily ones stay.")
@click.option(
    "--keep-weekly", type=click.IntRange(0, 1000), metavar="COUNT", help="How many weekly ones stay."
)
@click.option(
    "--keep-gib",
    type=click.FloatRange(min=0),
    metavar="GIB",
    help="What all may take in the store; 0: no limit. The oldest go first.",
)
@click.option(
    "--mirror",
    "mirrors",
    multiple=True,
    metavar="STORE",
    shell_complete=complete.STORE,
    help="Store for a second copy of everything; repeat for up to three.",
)
@click.option("--no-mirrors", is_flag=True, help="Keep copies in the app's own store only.")
@change_options
@pass_session
def policy(session: Session, name: str, group: str | None, **options: Any) -> None:
    """Show how an app is treated, or change it."""
    if options["mirrors"] and options["no_mirrors"]:
        raise click.UsageError("--mirror and --no-mirrors exclude each other")
    session.change(
        "app.policy",
        {
            "group": group,
            "app": name,
            "failover": options["failover"],
            "on_isolation": options["on_isolation"],
            "interval_s": options["interval"],
            "standby": options["standby"],
            "devices": list(options["devices"]) or None,
            "trust": options["trust"],
            "keep_all_s": None if options["keep_all"] is None else options["keep_all"] * 3600,
            "keep_hourly": options["keep_hourly"],
            "keep_daily": options["keep_daily"],
            "keep_weekly": options["keep_weekly"],
            "keep_bytes": None if options["keep_gib"] is None else int(options["keep_gib"] * 2**30),
            "mirrors": [] if options["no_mirrors"] else list(options["mirrors"]) or None,
        },
        _show_policy,
        options=options,
    )


def keep_words(keep: Mapping[str, Any]) -> str:
    """What a policy keeps."""
    counts = ", ".join(f"{keep[k]} {k}" for k in ("hourly", "daily", "weekly"))
    limit = f", {size(keep['bytes'])} at most" if keep["bytes"] else ""
    return f"all for {keep['all_s'] / 3600:g} h, {counts}{limit}"


def _show_policy(result: Mapping[str, Any]) -> None:
    now = result["policy"]
    show_facts(
        {
            "Failover": now["failover"],
            "On isolation": now["on_isolation"],
            "Interval": f"{now['interval_s']:g} s",
            "Standby": str(now["standby"]),
            "Devices": ", ".join(now["devices"]) or "all eligible",
            "Trust": now["trust"],
            "Keep": keep_words(now["keep"]),
            "Mirrors": ", ".join(now["mirrors"]) or "none",
        }
    )


@click.command()
@click.argument("name", metavar="APP", shell_complete=complete.APP)
@group_option
@click.option("--manifest", metavar="FILE", help="The new manifest. [default: the catalog's present one]")
@click.option("--rename", metavar="NAME", help="New name.")
@given_options
@wait_option
@change_options
@pass_session
def update(session: Session, name: str, group: str | None, **options: Any) -> None:
    """Give an app a new manifest, new values or a new name."""
    manifest, given, contexts, text = options["manifest"], given_values(options), None, None
    if manifest is not None:
        path = Path(manifest)
        given, text = {**given, "files": taken_along(path, options["read"]) or None}, read_text(path)
        contexts = sent_contexts(session, text, path, given, options)
    session.change(
        "app.update",
        {
            "group": group,
            "app": name,
            "manifest": text,
            "source": manifest,
            "name": options["rename"],
            **given,
            "contexts": contexts,
            "wait_s": options["wait_s"],
        },
        lambda result: say_done(result, f"{clean(name)}: updated."),
        options=options,
    )
