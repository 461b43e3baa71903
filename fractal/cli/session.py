"""What every command shares: where the agent is, what the common options said, and how results and progress are shown."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fractal.api.errors import ExitCode
from fractal.cli import complete
from fractal.cli.output import ProgressLine, show_json, show_plan

if TYPE_CHECKING:
    from fractal.client import Client

IDLE_TIMEOUT = 900.0
"""Longest silence of the agent during one command, in seconds, besides what the command itself waits."""
F = TypeVar("F", bound=Callable[..., Any])
Show = Callable[[Mapping[str, Any]], None]


class Session:
    """One run of the command line."""

    def __init__(self, *, config_path: str | None, quiet: bool = False) -> None:
        self.config_path = config_path
        self.quiet = quiet

    @property
    def config(self) -> Path:
        """Path of this device's configuration, given or found."""
        from fractal.cli.locate import locate_config

        return locate_config(self.config_path)

    def client(self) -> Client:
        """A client of this device's agent."""
        from fractal.cli.locate import control_socket
        from fractal.client import Client

        return Client(control_socket(self.config_path))

    def backend(self, kind: str) -> tuple[str, Any, Path]:
        """Name, settings and state folder of the backend of that kind (`coordination`, ...) that the configuration chooses.

        For commands of plugins, which find this session as click's context object. Raises ConfigError, NotFound.
        """
        from fractal.config.loading import load

        config = load(self.config)
        chosen = getattr(config, kind)
        return chosen.backend, chosen.settings, config.device.state_dir / kind / chosen.backend

    def call(
        self,
        command: str,
        params: Mapping[str, object],
        on_output: Show | None = None,
        timeout: float = 900.0,
    ) -> dict[str, Any]:
        """Run a command of the agent's, with progress on stderr."""
        with ProgressLine(enabled=not self.quiet) as line:
            return self.client().call(
                command, params, on_progress=line.show, on_output=on_output, timeout=timeout
            )

    def read(self, command: str, params: Mapping[str, object], show: Show, *, as_json: bool) -> None:
        """Run a reading command and show its result."""
        result = self.call(command, params)
        show_json(result) if as_json else show(result)

    def change(
        self,
        command: str,
        params: Mapping[str, object],
        show: Show,
        *,
        options: Mapping[str, Any],
        confirm: str = "",
    ) -> dict[str, Any]:
        """Run a changing command under `change_options`: plan only, ask first, or do it. Returns the result.

        `confirm` is the question put before something that cannot be taken back; the plan is shown with it. What was
        waited for in vain exits with PARTIAL.
        """
        dry_run, as_json = options["dry_run"], options["as_json"]
        if confirm and not options["yes"] and not dry_run:
            self._ask(command, params, confirm)
        wait = params.get("wait_s")
        silence = IDLE_TIMEOUT + (wait if isinstance(wait, float) else 0.0)
        result = self.call(command, {**params, "dry_run": dry_run or None}, timeout=silence)
        if as_json:
            show_json(result)
        elif dry_run:
            show_plan(result)
        else:
            show(result)
        if result.get("done") is False and wait != 0:
            click.get_current_context().exit(ExitCode.PARTIAL)
        return result

    def _ask(self, command: str, params: Mapping[str, object], question: str) -> None:
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise click.UsageError(
                f"{question} Nobody is there to ask: say --yes, or look first with --dry-run."
            )
        show_plan(self.call(command, {**params, "dry_run": True}), err=True)
        if not click.confirm(question, err=True):
            raise click.ClickException("nothing was done")


pass_session: Callable[[Callable[..., Any]], Callable[..., Any]] = click.make_pass_decorator(Session)
"""Gives a command the `Session` as its first argument."""


def group_option(function: F) -> F:
    """`--group`."""
    return click.option(
        "--group",
        metavar="GROUP",
        shell_complete=complete.GROUP,
        help="Group, by name or id. [default: the only one]",
    )(function)


def json_option(function: F) -> F:
    """`--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(function)


def change_options(function: F) -> F:
    """`--dry-run`, `--yes` and `--json`, for commands that change something."""
    for option in (
        json_option,
        click.option("-y", "--yes", is_flag=True, help="Do not ask."),
        click.option("-n", "--dry-run", is_flag=True, help="Only print what would be done."),
    ):
        function = option(function)
    return function


def interval_option(function: F) -> F:
    """`--interval`, as the agent takes it."""
    return click.option(
        "--interval",
        type=click.FloatRange(min=10, max=3600),
        metavar="SECONDS",
        help="Time between snapshots, 10 s to 1 h.",
    )(function)


def wait_option(function: F) -> F:
    """`--wait` and `--no-wait`."""
    return click.option(
        "--wait",
        "wait_s",
        type=click.FloatRange(min=0),
        metavar="SECONDS",
        help="How long to wait until it is so; 0 does not wait. [default: 120]",
    )(function)
