"""`homeserver app logs` and `exec`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

import click

from fractal.cli import complete
from fractal.cli.output import clean, show_json
from fractal.cli.session import IDLE_TIMEOUT, Session, group_option, json_option, pass_session

FOLLOW_TIMEOUT = 10 * 365 * 86400.0
"""A log may be silent for as long as it likes."""


@click.command()
@click.argument("name", metavar="APP", shell_complete=complete.APP)
@click.argument("service", required=False)
@group_option
@click.option(
    "-n", "--tail", type=click.IntRange(min=0), default=100, show_default=True, help="Last lines; 0: all."
)
@click.option("-f", "--follow", is_flag=True, help="Go on with new lines.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@pass_session
def logs(session: Session, name: str, service: str | None, group: str | None, **options: Any) -> None:
    """Show what an app's services print."""

    def show_line(line: Mapping[str, Any]) -> None:
        if options["as_json"]:
            click.echo(json.dumps(line, ensure_ascii=False))
        else:
            click.echo(clean(line["line"]) if service else f"{clean(line['service'])}  {clean(line['line'])}")

    session.call(
        "app.logs",
        {
            "group": group,
            "app": name,
            "service": service,
            "tail": options["tail"],
            "follow": options["follow"] or None,
        },
        on_output=show_line,
        timeout=FOLLOW_TIMEOUT if options["follow"] else IDLE_TIMEOUT,
    )


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("name", metavar="APP", shell_complete=complete.APP)
@click.argument("argv", nargs=-1, required=True, metavar="COMMAND [ARGUMENT]...", type=click.UNPROCESSED)
@group_option
@click.option(
    "--service", metavar="SERVICE", help="In which one. [default: the web service, else the only one]"
)
@click.option("-i", "--stdin", "feed", is_flag=True, help="Give it our standard input, read to its end.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0.1),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="Kill it then.",
)
@click.option(
    "-t",
    "--tty",
    "at_terminal",
    is_flag=True,
    help="At this terminal, for as long as it takes; only on its device.",
)
@json_option
@pass_session
def exec(session: Session, name: str, argv: tuple[str, ...], group: str | None, **options: Any) -> int:  # noqa: A001 - the command's name
    """Run a command inside an app's service and exit as it does. Options go before APP."""
    if argv[:1] == ("--",):
        argv = argv[1:]  # the usual way to say that what follows is the command
    if options["at_terminal"]:
        from fractal.cli.terminal import interact

        if options["feed"] or options["as_json"]:
            raise click.UsageError("--tty goes with neither --stdin nor --json")
        wanted = {"group": group, "app": name, "argv": list(argv), "service": options["service"]}
        return interact(session, wanted)
    result = session.call(
        "app.exec",
        {
            "group": group,
            "app": name,
            "argv": list(argv),
            "service": options["service"],
            "stdin": sys.stdin.read() if options["feed"] else None,
            "timeout_s": options["timeout"],
        },
        timeout=options["timeout"] + 60,
    )
    if options["as_json"]:
        show_json(result)
    else:
        click.echo(result["output"], nl=False)
    return int(result["exit_code"])
