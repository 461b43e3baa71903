"""Commands that plugins bring (entry-point group `fractal.commands`): found late, their help lines kept in a cache.

Scanning the installed distributions takes longer than all the rest of `homeserver --help`, so that is done once for
each state of `sys.path`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "fractal.commands"
LIMIT = 1 << 20


def help_lines() -> Mapping[str, str]:
    """Help line of every plugin command by name, from the cache where that is still true."""
    path = _cache_path()
    stamp = _stamp()
    cached = _read(path)
    if cached.get("stamp") == stamp and isinstance(lines := cached.get("help"), dict):
        return {str(name): str(line) for name, line in lines.items()}
    fresh = {name: _help_line(entry) for name, entry in sorted(_entries().items())}
    _write(path, {"stamp": stamp, "help": fresh})
    return fresh


def load_command(name: str) -> click.Command | None:
    """A plugin's command, None if no plugin has it. A broken one becomes an error message, not a traceback.

    The cache is not asked: it holds help lines only, and what runs is what is installed.
    """
    entry = _entries().get(name)
    if entry is None:
        return None
    try:
        found = entry.load()
    except Exception as error:
        raise click.ClickException(
            f"command {name!r} of plugin {_owner(entry)} cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(found, click.Command):
        raise click.ClickException(
            f"entry point {name!r} of plugin {_owner(entry)} is no click command but {type(found).__name__}"
        )
    return found


def _entries() -> dict[str, EntryPoint]:
    from importlib.metadata import entry_points

    return {entry.name: entry for entry in entry_points(group=GROUP)}


def _owner(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else entry.value


def _help_line(entry: EntryPoint) -> str:
    try:
        command = load_command(entry.name)
    except click.ClickException as error:
        return f"({error.message})"
    return command.get_short_help_str(limit=60) if command is not None else ""


def _cache_path() -> str:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")  # noqa: PTH111, PTH118 - pathlib is slow to import
    return os.path.join(base, "homeserver", "commands.json")  # noqa: PTH118


def _stamp() -> str:
    """Changes when something is installed into, or removed from, a folder of `sys.path`."""
    parts = [sys.version]
    for folder in sys.path:
        try:
            found = os.stat(folder or ".")  # noqa: PTH116
        except OSError:
            continue
        parts.append(f"{folder}:{found.st_mtime_ns}")
    return "\n".join(parts)


def _read(path: str) -> dict[str, object]:
    try:
        with open(path, encoding="utf-8") as file:  # noqa: PTH123
            value = json.loads(file.read(LIMIT))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _write(path: str, value: Mapping[str, object]) -> None:
    """Whole or not at all; a cache that cannot be written is done without."""
    scratch = f"{path}.{os.getpid()}"
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)  # noqa: PTH103, PTH120
        with open(scratch, "w", encoding="utf-8") as file:  # noqa: PTH123
            json.dump(value, file)
        os.replace(scratch, path)  # noqa: PTH105
    except OSError:
        return
