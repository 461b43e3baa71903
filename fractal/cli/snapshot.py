"""`homeserver snapshot`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from fractal.api.errors import ExitCode
from fractal.cli import complete
from fractal.cli.app import AT_HELP
from fractal.cli.output import clean, moment, show_facts, show_json, show_table, size
from fractal.cli.session import (
    Session,
    change_options,
    group_option,
    json_option,
    pass_session,
    wait_option,
)
from fractal.cli.trees import Item, copy_out, differences, entries

MERGED = ("", "end of an hour", "end of a day", "end of a week")


@click.group()
def snapshot() -> None:
    """List, take, check and pin moments of an app. APP is a name or an id."""


@snapshot.command("list")
@click.argument("name", metavar="APP", shell_complete=complete.APP_OR_REMOVED)
@group_option
@json_option
@pass_session
def list_(session: Session, name: str, group: str | None, as_json: bool) -> None:
    """List the kept moments of an app, oldest first."""
    session.read("snapshot.list", {"group": group, "app": name}, _show_list, as_json=as_json)


def _show_list(result: Mapping[str, Any]) -> None:
    """A timeline: each day once, then what was kept of it."""
    rows, shown = [], ""
    for one in result["snapshots"]:
        day, _, time = moment(one["wall_ms"]).partition(" ")
        remarks = [word for word in ("pinned", "branch") if one[word]] + [MERGED[one["level"]]]
        words = ", ".join(word for word in remarks if word)
        rows.append(
            (" " if day == shown else day, time, one["moment"], one["device"], size(one["bytes"]), words)
        )
        shown = day
    head = ("DAY", "TIME", "MOMENT", "DEVICE", "STORED", "REMARKS")
    show_table(head, rows, empty="No snapshots yet.")


@snapshot.command()
@click.argument("name", metavar="APP", shell_complete=complete.APP)
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
@click.argument("name", metavar="APP", shell_complete=complete.APP)
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
@click.argument("name", metavar="APP", shell_complete=complete.APP)
@group_option
@click.option("--deep", is_flag=True, help="Look at every byte in every store.")
@change_options
@pass_session
def repair(session: Session, name: str, group: str | None, deep: bool, **options: Any) -> None:
    """Put back what one store of an app lost and another one has. The app's device does so by itself, more slowly."""
    session.change(
        "snapshot.repair",
        {"group": group, "app": name, "deep": deep or None},
        _show_repair,
        options=options,
    )


def _show_repair(result: Mapping[str, Any]) -> None:
    rows = [(m["object"], m["store"], f"put back out of {m['source']}") for m in result["mended"]]
    rows += [(m["object"], m["store"], m["what"]) for m in result["left"]]
    show_table(("OBJECT", "STORE", "WHAT"), rows, empty="Nothing is missing.")


@snapshot.command()
@click.argument("name", metavar="APP", shell_complete=complete.APP)
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


@snapshot.command("plan")
@click.argument("name", metavar="APP", shell_complete=complete.APP)
@group_option
@json_option
@pass_session
def plan_(session: Session, name: str, group: str | None, as_json: bool) -> None:
    """Show what an app's policy keeps, lets go and merges next."""
    session.read("snapshot.plan", {"group": group, "app": name}, _show_outlook, as_json=as_json)


def _show_outlook(result: Mapping[str, Any]) -> None:
    rows = [(k["moment"], moment(k["wall_ms"]), k["why"]) for k in result["kept"]]
    show_table(("MOMENT", "TIME", "KEPT AS"), rows, empty="No snapshots yet.")
    click.echo()
    facts = {
        "Kept": f"{len(result['kept'])} moments, {size(result['kept_bytes'])}",
        "Let go next": f"{len(result['let_go'])} records, {size(result['let_go_bytes'])}",
        "Leaving": f"{len(result['leaving'])} records, {size(result['leaving_bytes'])}, within a day",
        "Merged next": result["merge"],
    }
    if result["over_bytes"]:
        facts["Over the limit"] = f"{size(result['over_bytes'])}: pins and the newest moment stay"
    show_facts(facts)


@snapshot.command()
@click.argument("name", metavar="APP", shell_complete=complete.APP)
@group_option
@change_options
@pass_session
def prune(session: Session, name: str, group: str | None, **options: Any) -> None:
    """Merge and let go now what is due; the app's device does so by itself."""
    session.change(
        "snapshot.prune",
        {"group": group, "app": name},
        lambda r: click.echo(
            f"{r['merged']} merged, {r['let_go']} let go, {r['removed']} removed ({size(r['bytes'])})."
        ),
        options=options,
    )


at_option = click.option("--at", metavar="MOMENT", help=AT_HELP)


@snapshot.command("open")
@click.argument("name", metavar="APP", shell_complete=complete.APP_OR_REMOVED)
@group_option
@at_option
@click.option(
    "--for",
    "hours",
    type=click.FloatRange(0.01, 168),
    default=1.0,
    show_default=True,
    metavar="HOURS",
    help="How long the folder stays.",
)
@json_option
@pass_session
def open_(
    session: Session, name: str, group: str | None, at: str | None, hours: float, as_json: bool
) -> None:
    """Have a moment in a read-only folder of this device, for a file manager."""
    wanted = {"group": group, "app": name, "at": at, "for_s": hours * 3600}
    session.read("snapshot.open", wanted, lambda r: click.echo(clean(r["path"])), as_json=as_json)


def _opened(session: Session, name: str, group: str | None, at: str | None) -> Path:
    result = session.call("snapshot.open", {"group": group, "app": name, "at": at})
    click.echo(f"{clean(name)} as of {moment(result['wall_ms'])} ({clean(result['moment'])})", err=True)
    return Path(result["path"])


@snapshot.command()
@click.argument("name", metavar="APP", shell_complete=complete.APP_OR_REMOVED)
@click.argument("path", metavar="[PATH]", default="")
@group_option
@at_option
@json_option
@pass_session
def browse(session: Session, name: str, path: str, group: str | None, at: str | None, as_json: bool) -> None:
    """List the files of a moment: those of folder PATH of the app's data."""
    found = entries(_opened(session, name, group, at), path)
    if as_json:
        show_json({"entries": [_plain(i) for i in found]})
        return
    rows = [
        (i.kind, size(i.size) if i.kind == "file" else "", moment(i.mtime_ns // 1_000_000), _shown(i))
        for i in found
    ]
    show_table(("KIND", "SIZE", "CHANGED", "NAME"), rows, empty="Nothing is in there.")


@snapshot.command()
@click.argument("name", metavar="APP", shell_complete=complete.APP_OR_REMOVED)
@click.argument("path", metavar="PATH")
@click.argument("target", metavar="DEST", type=click.Path(path_type=Path))
@group_option
@at_option
@pass_session
def copy(session: Session, name: str, path: str, target: Path, group: str | None, at: str | None) -> int:
    """Copy file or folder PATH of a moment to DEST on this device. Links are copied, never followed."""
    count, left = copy_out(_opened(session, name, group, at), path, target)
    for other in left:
        click.echo(f"not copied, no file: {clean(other)}", err=True)
    click.echo(f"{count} copied.")
    return ExitCode.FAILED if left else ExitCode.OK


@snapshot.command()
@click.argument("name", metavar="APP", shell_complete=complete.APP_OR_REMOVED)
@click.argument("path", metavar="[PATH]", default="")
@group_option
@click.option("--at", metavar="MOMENT", required=True, help="The earlier moment.")
@click.option("--to", metavar="MOMENT", help="The later moment. [default: the newest]")
@json_option
@pass_session
def diff(
    session: Session, name: str, path: str, group: str | None, at: str, to: str | None, as_json: bool
) -> None:
    """List what changed between two moments. A file of the same size and time counts as unchanged."""
    before, after = _opened(session, name, group, at), _opened(session, name, group, to)
    found = differences(before, after, path)
    if as_json:
        show_json({"changes": [{"change": how, **_plain(item)} for how, item in found]})
        return
    rows = [(how, i.kind, size(i.size) if i.kind == "file" else "", _shown(i)) for how, i in found]
    show_table(("CHANGE", "KIND", "SIZE", "NAME"), rows, empty="Nothing changed.")


def _plain(item: Item) -> dict[str, object]:
    """An item for programs. A name that is no UTF-8 has replacement characters."""
    readable = {
        k: os.fsencode(v).decode(errors="replace") for k, v in (("path", item.path), ("target", item.target))
    }
    return {**readable, "kind": item.kind, "size": item.size, "mtime_ms": item.mtime_ns // 1_000_000}


def _shown(item: Item) -> str:
    name = f"{item.path}/" if item.kind == "folder" else item.path
    return os.fsencode(f"{name} -> {item.target}" if item.kind == "link" else name).decode(errors="replace")
