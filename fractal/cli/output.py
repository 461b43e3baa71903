"""How results look: aligned tables and plain words on stdout, progress on stderr."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import click

DASH = "-"


def show_json(document: Mapping[str, Any]) -> None:
    """One JSON document, indented, on stdout."""
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))


def show_table(head: Sequence[str], rows: Iterable[Sequence[str]], *, empty: str = "") -> None:
    """Columns as wide as they must be, two spaces apart; `empty` is said on stderr if there are no rows."""
    shown = [[clean(cell) or DASH for cell in row] for row in rows]
    if not shown:
        if empty:
            click.echo(empty, err=True)
        return
    table = [list(head), *shown]
    widths = [max(_width(row[i]) for row in table) for i in range(len(head))]
    for row in table:
        cells = [cell + " " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True)]
        click.echo("  ".join(cells).rstrip())


def show_facts(facts: Mapping[str, str]) -> None:
    """One fact a line, its name in front."""
    width = max((_width(name) for name in facts), default=0)
    for name, value in facts.items():
        click.echo(f"{name}{' ' * (width - _width(name))}  {clean(value) or DASH}")


def show_plan(result: Mapping[str, Any], *, err: bool = False) -> None:
    """The plan of a changing command, numbered."""
    steps = result["plan"]
    if not steps:
        click.echo("Nothing to do.", err=err)
    for number, step in enumerate(steps, 1):
        click.echo(f"{number:3}. {clean(step['what'])}", err=err)
        for name, value in step["detail"].items():
            click.echo(f"       {clean(name)}: {clean(value)}", err=err)


def clean(text: str) -> str:
    """Text for one line of a terminal: what others named cannot move the cursor or change colours."""
    return "".join(
        c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text.expandtabs(4).replace("\n", " ")
    )


def seconds(value: float | None) -> str:
    """A length of time as people say it: `4 s`, `3 min`, `5 h`, `2 d`."""
    if value is None:
        return DASH
    for limit, size, unit in ((120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if value < limit:
            return f"{value / size:.0f} {unit}"
    return f"{value / 86400:.0f} d"


def size(value: int) -> str:
    """Bytes in binary units: `512 B`, `1.5 MiB`."""
    amount = float(value)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def moment(wall_ms: int) -> str:
    """A wall-clock label in local time."""
    import datetime as dt

    when = dt.datetime.fromtimestamp(wall_ms / 1000, tz=dt.UTC).astimezone()
    return when.strftime("%Y-%m-%d %H:%M:%S")


def yes_no(value: bool | None) -> str:
    """`yes`, `no`, or a dash for what is not known."""
    return DASH if value is None else "yes" if value else "no"


def _width(text: str) -> int:
    """Columns on a terminal: wide East Asian characters take two, combining ones none."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text
    )


class ProgressLine:
    """Progress on stderr: one line that rewrites itself on a terminal, plain lines of text elsewhere."""

    def __init__(self, *, enabled: bool = True) -> None:
        self._enabled = enabled
        self._terminal = sys.stderr.isatty()
        self._drawn = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._erase()

    def show(self, progress: Mapping[str, Any]) -> None:
        """One progress line of the agent's."""
        if not self._enabled:
            return
        text = clean(str(progress.get("text", "")))
        if not self._terminal:
            if text:
                click.echo(text, err=True)
            return
        self._erase()
        line = (text or _share(progress))[:100]
        click.echo(line, err=True, nl=False)
        self._drawn = _width(line)

    def _erase(self) -> None:
        if self._drawn:
            click.echo("\r" + " " * self._drawn + "\r", err=True, nl=False)
            self._drawn = 0


def _share(progress: Mapping[str, Any]) -> str:
    done, total, unit = progress.get("done", 0), progress.get("total", 0), progress.get("unit", "")
    if unit == "bytes":
        return f"{size(done)} of {size(total)}" if total else size(done)
    return clean(f"{done} of {total} {unit}" if total else f"{done} {unit}").strip()
