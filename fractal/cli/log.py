"""`homeserver log`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from fractal.cli.output import show_table
from fractal.cli.session import Session, group_option, json_option, pass_session


@click.group()
def log() -> None:
    """Look at a group's log."""


@log.command()
@group_option
@click.option(
    "-n", "--tail", type=click.IntRange(min=0), default=50, show_default=True, help="How many; 0: all."
)
@json_option
@pass_session
def show(session: Session, group: str | None, tail: int, as_json: bool) -> None:
    """Show the last entries, valid or not."""
    session.read("log.show", {"group": group, "tail": tail}, _show, as_json=as_json)


def _show(result: Mapping[str, Any]) -> None:
    rows = [
        (
            str(e["position"]),
            e["author"],
            e["kind"],
            f"skipped: {e['skipped']}" if e["skipped"] else e["summary"],
        )
        for e in result["entries"]
    ]
    show_table(("POSITION", "BY", "KIND", "WHAT"), rows, empty="The log is empty.")
