"""Names for the shell's completion, asked of the agent: soon or not at all, and never with an error."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

LIMIT = 1.0
"""Seconds of silence after which nothing is offered: somebody waits with a key pressed."""
MOST = 200
Complete = Callable[[click.Context, click.Parameter, str], list["CompletionItem"]]


def names(command: str, *fields: str) -> Complete:
    """Completion by the `name`s in the lists that a reading command answers with."""

    def complete(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
        found = sorted({str(one["name"]) for one in _asked(ctx, command, fields)}, key=str.casefold)
        fitting = [n for n in found if n.isprintable() and n.casefold().startswith(incomplete.casefold())]
        return [_item(name) for name in fitting[:MOST]]

    return complete


def _asked(ctx: click.Context, command: str, fields: tuple[str, ...]) -> list[dict[str, Any]]:
    from fractal.api.errors import FractalError
    from fractal.cli.locate import control_socket
    from fractal.client import Client

    group = ctx.params.get("group") if command != "group.list" else None
    try:
        socket = control_socket(ctx.find_root().params.get("config_path"))
        answer = Client(socket).call(command, {"group": group}, timeout=LIMIT)
        return [one for field in fields for one in answer[field]]
    except (FractalError, OSError, ValueError, KeyError, TypeError):
        return []  # no agent, no group, another version: there is nothing to offer, and nowhere to say why


def _item(name: str) -> CompletionItem:
    from click.shell_completion import CompletionItem

    if os.environ.get("_HOMESERVER_COMPLETE", "").startswith("bash"):
        import shlex

        return CompletionItem(
            shlex.quote(name)
        )  # bash puts it on the line as it is; the others quote by themselves
    return CompletionItem(name)


def app_to_install(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Apps of the catalogs, or the shell's own files once it looks like a path."""
    from click.shell_completion import CompletionItem

    if incomplete.startswith((".", "/", "~")):
        return [CompletionItem(incomplete, type="file")]
    return names("catalog.list", "items")(ctx, param, incomplete)


APP = names("app.list", "apps")
APP_OR_REMOVED = names("app.list", "apps", "removed")
DEVICE = names("device.list", "devices")
PENDING = names("device.list", "pending")
GROUP = names("group.list", "groups")
STORE = names("store.list", "stores")
