"""`homeserver`: the command line. Only what a command needs is imported when it runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from fractal import __version__
from fractal.cli.lazy import LazyGroup

COMMANDS = {
    "status": ("fractal.cli.status:status", "Show how every group, device and app is."),
    "app": ("fractal.cli.app:app", "Install, move, restore and otherwise handle apps."),
    "snapshot": ("fractal.cli.snapshot:snapshot", "List, take, check and pin moments of an app."),
    "group": ("fractal.cli.group:group", "Create, show, join and leave groups."),
    "device": ("fractal.cli.device:device", "Approve, rename, drain and remove devices."),
    "member": ("fractal.cli.member:member", "Show members, their roles, and remove them."),
    "store": ("fractal.cli.store:store", "Say where archives are kept, and try it."),
    "gateway": ("fractal.cli.gateway:gateway", "Say which devices carry traffic from outside."),
    "route": ("fractal.cli.route:route", "Lead public names to apps."),
    "catalog": ("fractal.cli.catalog:catalog", "Look at the apps that can be installed."),
    "agent": ("fractal.cli.agent:agent", "Run the agent, or see how it is."),
    "doctor": ("fractal.cli.doctor:doctor", "Find out what is wrong, and what to do."),
    "log": ("fractal.cli.log:log", "Look at a group's log."),
    "config": ("fractal.cli.config:config", "Check, show and make this device's configuration."),
    "plugin": ("fractal.cli.plugin:plugin", "List, show and check plugins."),
}


@click.group(
    cls=LazyGroup,
    lazy=COMMANDS,
    plugins=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="homeserver", message="%(prog)s %(version)s")
@click.option(
    "--config",
    "config_path",
    metavar="FILE",
    envvar="HOMESERVER_CONFIG",
    help="This device's configuration. [default: /etc/homeserver/config.toml, else the user's]",
)
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@click.pass_context
def cli(ctx: click.Context, config_path: str | None, quiet: bool) -> None:
    """Run your apps on devices you own, alone or with friends.

    Start with `homeserver app install NAME` and `homeserver status`.
    """
    from fractal.cli.session import Session

    ctx.obj = Session(config_path=config_path, quiet=quiet)


def main() -> None:
    """Entry point of the `homeserver` command: errors become one message, or one JSON document, and a documented exit code."""
    from fractal.api.errors import ExitCode, FractalError

    try:
        code = cli.main(prog_name="homeserver", standalone_mode=False)
    except click.ClickException as error:
        if _wants_json(sys.argv[1:]):
            usage = isinstance(error, click.UsageError)
            _tell("usage" if usage else "failed", error.format_message(), error.exit_code)
        else:
            error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        if _wants_json(sys.argv[1:]):
            _tell("interrupted", "interrupted", ExitCode.INTERRUPTED)
        else:
            click.echo("interrupted", err=True)
        sys.exit(ExitCode.INTERRUPTED)
    except FractalError as error:
        if _wants_json(sys.argv[1:]):
            _tell(error.code, str(error), error.exit_code, getattr(error, "candidates", ()))
        else:
            click.echo(f"homeserver: {error}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # Whoever read our output has seen enough; the flush at exit must not complain either.
        import os

        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(ExitCode.OK)
    sys.exit(code if isinstance(code, int) else ExitCode.OK)


def _wants_json(words: Sequence[str]) -> bool:
    """Whether `--json` was said. By the words: what is wrong may be the command line itself. After `--` come others' words."""
    own = words[: words.index("--")] if "--" in words else words
    return "--json" in own


def _tell(code: str, message: str, exit_code: int, candidates: Sequence[str] = ()) -> None:
    """An error for programs, on stderr, as the control API words it."""
    import json

    told = {"code": code, "message": message, "exit_code": int(exit_code)}
    error = {**told, "candidates": list(candidates)} if candidates else told
    click.echo(json.dumps({"error": error}, ensure_ascii=False), err=True)
