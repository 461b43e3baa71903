"""A group of commands whose modules are imported only when one of them is run."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import click


class LazyGroup(click.Group):
    """Knows each command's place ("module:attribute") and help line, so that `--help` imports none of them."""

    def __init__(
        self,
        *args: Any,
        lazy: Mapping[str, tuple[str, str]] | None = None,
        plugins: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.lazy = dict(lazy or {})
        self._plugins = plugins

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Ours in the order in which they are declared, then the plugins' by name."""
        plugins = (name for name in self._plugin_help() if name not in self.lazy)
        return [*self.commands, *self.lazy, *plugins]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import and return one command; a plugin cannot replace one of ours."""
        if cmd_name in self.commands:
            return self.commands[cmd_name]
        if cmd_name in self.lazy:
            module, _, attribute = self.lazy[cmd_name][0].partition(":")
            found = getattr(importlib.import_module(module), attribute)
            assert isinstance(found, click.Command)
            return found
        if not self._plugins:
            return None
        from fractal.cli.plugin_commands import load_command

        return load_command(cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's, with a suggestion where a command is unknown."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from difflib import get_close_matches

            close = get_close_matches(args[0], self.list_commands(ctx), n=1)
            if not close or "Did you mean" in error.message:
                raise
            raise click.UsageError(f"{error.message} Did you mean {close[0]!r}?", ctx) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """The commands with the help lines kept here or in the plugins' cache."""
        own = [(name, command.get_short_help_str(100)) for name, command in self.commands.items()]
        own += [(name, help_line) for name, (_, help_line) in self.lazy.items()]
        with formatter.section("Commands"):
            formatter.write_dl(own)
        others = [(n, h) for n, h in sorted(self._plugin_help().items()) if n not in self.lazy]
        if others:
            with formatter.section("Commands of plugins"):
                formatter.write_dl(others)

    def _plugin_help(self) -> Mapping[str, str]:
        if not self._plugins:
            return {}
        from fractal.cli.plugin_commands import help_lines

        return help_lines()
