"""`homeserver catalog`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from fractal.cli import complete
from fractal.cli.output import clean, show_table
from fractal.cli.session import Session, change_options, json_option, pass_session

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


@catalog.command()
@click.argument("words", nargs=-1, required=True)
@catalog_option
@json_option
@pass_session
def search(session: Session, words: tuple[str, ...], only: str | None, as_json: bool) -> None:
    """List the apps that have all WORDS in name, title or summary."""
    params = {"catalog": only, "search": " ".join(words)}
    session.read("catalog.list", params, _show_list, as_json=as_json)


def _show_list(result: Mapping[str, Any]) -> None:
    rows = [(i["name"], i["version"], i["summary"] or i["title"], i["catalog"]) for i in result["items"]]
    show_table(("APP", "VERSION", "WHAT IT IS", "CATALOG"), rows, empty="No apps.")
    for problem in result["failed"]:
        click.echo(clean(problem), err=True)


@catalog.command()
@click.argument("name", metavar="APP", shell_complete=complete.names("catalog.list", "items"))
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


@catalog.command()
@click.argument("name", metavar="NAME")
@click.argument("folder", metavar="FOLDER", type=click.Path(path_type=Path))
@change_options
@pass_session
def add(session: Session, name: str, folder: Path, **options: Any) -> None:
    """Offer the manifests of FOLDER too, such as a checkout of a git repository.

    It holds NAME.yml, or folders NAME with a compose.yaml. They are read when somebody looks, so `git pull` there is all that an
    update takes; nothing in it is ever run.
    """
    session.change(
        "catalog.add",
        {"name": name, "path": str(folder.absolute())},
        lambda r: click.echo(f"The catalog {clean(r['name'])} is on offer: homeserver catalog list."),
        options=options,
    )


@catalog.command()
@click.argument("name", metavar="NAME")
@change_options
@pass_session
def remove(session: Session, name: str, **options: Any) -> None:
    """No longer offer a catalog that was added. Installed apps stay."""
    session.change(
        "catalog.remove",
        {"name": name},
        lambda r: click.echo(f"The catalog {clean(r['name'])} is not on offer any more."),
        options=options,
    )
