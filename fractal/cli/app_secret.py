"""`homeserver app secret`."""

from __future__ import annotations

import click

from fractal.cli import complete
from fractal.cli.output import clean
from fractal.cli.session import Session, group_option, json_option, pass_session


@click.command()
@click.argument("name", metavar="APP", shell_complete=complete.APP)
@click.argument("secret_name", metavar="SECRET")
@group_option
@json_option
@pass_session
def secret(session: Session, name: str, secret_name: str, group: str | None, as_json: bool) -> None:
    """Print one of an app's secrets, such as a password that was made for it. `app show` lists their names."""
    session.read(
        "app.secret",
        {"group": group, "app": name, "secret": secret_name},
        lambda r: click.echo(clean(r["value"])),
        as_json=as_json,
    )
