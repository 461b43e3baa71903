"""NAME=VALUE arguments."""

from __future__ import annotations

from collections.abc import Iterable

import click


def name_values(option: str, pairs: Iterable[str]) -> dict[str, str]:
    """NAME=VALUE texts as a mapping. Raises click's usage error for one without a name or given twice."""
    values: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.strip():
            raise click.UsageError(f"{option}: {pair!r} is not NAME=VALUE")
        if name in values:
            raise click.UsageError(f"{option}: {name!r} is given twice")
        values[name] = value
    return values
