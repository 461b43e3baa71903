"""`homeserver doctor`: from the outside in, what is wrong and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from fractal.api.errors import ExitCode, FractalError
from fractal.cli.output import clean, show_json
from fractal.cli.session import Session, group_option, json_option, pass_session

Finding = Mapping[str, Any]


@click.command()
@group_option
@json_option
@pass_session
def doctor(session: Session, group: str | None, as_json: bool) -> int:
    """Find out what is wrong, and what to do. Exits 1 if something is.

    It looks at the configuration, the agent, the groups' logs, devices, stores, apps and gateways, and changes nothing.
    """
    result = _examine(session, group)
    if as_json:
        show_json(result)
    else:
        _show(result)
    return ExitCode.FAILED if any(f["severe"] for f in result["findings"]) else ExitCode.OK


def _examine(session: Session, group: str | None) -> Mapping[str, Any]:
    try:
        config = session.config
    except FractalError as error:
        return _only("config", str(error), "homeserver config init")
    from fractal.config import load

    try:
        load(config)
    except FractalError as error:
        return _only("config", str(error), f"Mend {config}, then: homeserver config check")
    try:
        return session.call("doctor.run", {"group": group})
    except FractalError as error:
        return _only("agent", str(error), "homeserver agent run, or: systemctl status homeserver")


def _only(check: str, what: str, remedy: str) -> Mapping[str, Any]:
    """What there is to say when nothing behind it can be looked at; each line of `what` is a finding of its own."""
    return {
        "checks": [check],
        "findings": [
            {"check": check, "what": line, "remedy": remedy, "severe": True} for line in what.splitlines()
        ],
    }


def _show(result: Mapping[str, Any]) -> None:
    for finding in result["findings"]:
        click.echo(f"{'!' if finding['severe'] else '-'} {finding['check']}: {clean(finding['what'])}")
        click.echo(f"    {clean(finding['remedy'])}")
    if not result["findings"]:
        click.echo("All is well.")
    click.echo(f"Looked at: {', '.join(result['checks'])}", err=True)
