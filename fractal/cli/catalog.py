"""`homeserver catalog`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from fractal.cli.output import clean, show_table
from fractal.cli.session import Session, json_option, pass_session

catalog_option = click.option("--catalog", "only", metavar="NAME", help="Only this catalog.")


@click.group()
def catalog() -> None:
    """Look at the apps that can be installed."""


@catalog.command("list")
@catalog_option
@json_option
@pass_session
def list_(session: Session, only: str | None, as_json: bool) -> None:
    """List the apps that the catalogs of this device offer."""
    session.read("catalog.list", {"catalog": only}, _show_list, as_json=as_json)


def _show_list(result: Mapping[str, Any]) -> None:
    rows = [(i["name"], i["version"], i["summary"] or i["title"], i["catalog"]) for i in result["items"]]
    show_table(("APP", "VERSION", "WHAT IT IS", "CATALOG"), rows, empty="The catalogs are empty.")
    for problem in result["failed"]:
        click.echo(clean(problem), err=True)


@catalog.command()
@click.argument("name", metavar="APP")
@catalog_option
@json_option
@pass_session
def show(session: Session, name: str, only: str | None, as_json: bool) -> None:
    """Print an app's manifest."""
    session.read(
        "catalog.show",
        {"app": name, "catalog": only},
        lambda r: click.echo("\n".join(clean(line) for line in r["manifest"].splitlines())),
        as_json=as_json,
    )
