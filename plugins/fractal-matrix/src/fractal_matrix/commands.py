"""`homeserver login` and `homeserver logout`: who this device's member is to a Matrix homeserver.

They write the file that the agent reads, which it notices by itself. Passwords come from the terminal or a file and are not kept.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fractal.api.errors import Misconfigured, NotFound

if TYPE_CHECKING:
    from fractal_matrix.accounts import Account
    from fractal_matrix.config import MatrixConfig

SECRET_LIMIT = 4096
TIMEOUT = 30.0
"""Seconds for one request; logging in may take the homeserver a while."""
_FILE = click.Path(path_type=Path, allow_dash=True)


@click.command()
@click.option("--server", metavar="NAME|URL", required=True, help="The homeserver, like example.org.")
@click.option("--user", metavar="NAME", help="Who you are there, like anna.")
@click.option(
    "--password-file", type=_FILE, metavar="FILE", help="Where the password is; - for stdin. [default: asks]"
)
@click.option(
    "--token-file", type=_FILE, metavar="FILE", help="An access token made elsewhere, instead of a password."
)
@click.option(
    "--registration-token-file",
    type=_FILE,
    metavar="FILE",
    help="A registration token of that homeserver, with which devices make accounts of their own.",
)
@click.pass_obj
def login(
    session: Any,
    server: str,
    user: str | None,
    password_file: Path | None,
    token_file: Path | None,
    registration_token_file: Path | None,
) -> None:
    """Log in to a Matrix homeserver."""
    from fractal_matrix.accounts import Accounts, with_login
    from fractal_matrix.address import check_token

    settings, folder = _matrix(session)
    registration = check_token(_secret(registration_token_file)) if registration_token_file else ""
    if token_file:
        secret = _secret(token_file)
    elif not user:
        raise click.UsageError("Say who you are with --user, or give an access token with --token-file.")
    else:
        secret = (
            _secret(password_file) if password_file else click.prompt("Password", hide_input=True, err=True)
        )
    account = asyncio.run(_log_in(settings, server, user or "", secret, by_token=bool(token_file)))
    _prepare(folder)
    accounts = Accounts(folder)
    before = accounts.known().logins.get(account.url)
    accounts.write(with_login(accounts.known(), account, registration))
    if before is not None and before.token != account.token:
        asyncio.run(_end(settings, before))
    click.echo(f"This device is logged in as {account.user} on {account.url}.")


@click.command()
@click.option("--server", metavar="URL", help="Which one, where there are several.")
@click.pass_obj
def logout(session: Any, server: str | None) -> None:
    """Log out of a Matrix homeserver."""
    from fractal_matrix.accounts import Accounts, without_login

    settings, folder = _matrix(session)
    accounts = Accounts(folder)
    known = accounts.known()
    url = server.rstrip("/") if server else known.home
    account = known.logins.get(url)
    if account is None:
        raise NotFound(f"this device is not logged in to {url or 'any homeserver'}")
    accounts.write(without_login(known, url))
    asyncio.run(_end(settings, account))
    click.echo(f"{account.user} is logged out of {url}. Accounts that groups' logs are read with stay.")


def _matrix(session: Any) -> tuple[MatrixConfig, Path]:
    """This device's settings of the backend, and the backend's state folder. Raises Misconfigured."""
    name, settings, folder = session.backend("coordination")
    if name != "matrix":
        raise Misconfigured(
            "coordination.backend",
            f'is {name!r} in {session.config}: set it to "matrix" first, and restart the agent',
        )
    return settings, folder


async def _log_in(settings: MatrixConfig, server: str, user: str, secret: str, *, by_token: bool) -> Account:
    from fractal_matrix import signing_in
    from fractal_matrix.wire import Wire

    def wire(url: str) -> Wire:
        return Wire(url, timeout=TIMEOUT, ca_file=settings.ca_file)

    url = await signing_in.discover(wire, server, cleartext=settings.cleartext)
    opened = wire(url)
    try:
        if by_token:
            return await signing_in.by_token(opened, secret)
        return await signing_in.by_password(opened, user, secret, name="homeserver")
    finally:
        await opened.close()


async def _end(settings: MatrixConfig, account: Account) -> None:
    from fractal_matrix.signing_in import sign_out
    from fractal_matrix.wire import Wire

    wire = Wire(account.url, timeout=TIMEOUT, ca_file=settings.ca_file)
    try:
        await sign_out(wire, account, for_good=False)
    finally:
        await wire.close()


def _secret(path: Path) -> str:
    """The first line of a file or of stdin. It is in no argument, as everybody on the machine can read those."""
    try:
        with click.open_file(str(path), encoding="utf-8") as file:
            line: str = file.readline(SECRET_LIMIT).strip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{path} cannot be read: {error}") from error
    if not line:
        raise click.UsageError(f"{path} holds nothing in its first line.")
    return line


def _prepare(folder: Path) -> None:
    """The folder, as the agent would make it: its own, also if root makes it."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    if made:
        owner = made[-1].parent.stat()
        for path in reversed(made):
            path.mkdir(mode=0o700, exist_ok=True)
            if os.geteuid() == 0:
                os.chown(path, owner.st_uid, owner.st_gid)
