"""`post_start` and `pre_stop`: commands that a service wants run inside it beside its own."""

from __future__ import annotations

from collections.abc import Mapping

from fractal.api.app import Command
from fractal.manifest.document import Items, Scalar
from fractal.manifest.values import Where

KEYS = frozenset({"command", "user", "privileged", "working_dir", "environment"})


def commands(where: Where | None) -> tuple[Command, ...]:
    """Those of one of the two keys, in order."""
    if where is None or (isinstance(where.node, Scalar) and where.node.value is None):
        return ()
    return tuple(found for item in where.items() if (found := _command(item)) is not None)


def _command(where: Where) -> Command | None:
    table: Mapping[str, Where] = where.table(KEYS)
    if "command" not in table:
        where.wrong("needs `command`")
        return None
    if "privileged" in table and table["privileged"].flag():
        table["privileged"].wrong("not supported: do it in a service that is privileged itself")
    return Command(
        argv=table["command"].argv(),
        user=table["user"].text() if "user" in table else "",
        working_dir=table["working_dir"].text() if "working_dir" in table else "",
        env=_environment(table.get("environment")),
    )


def _environment(where: Where | None) -> dict[str, str]:
    """Names without a value are left out, as they would stand for the device's own."""
    if where is None:
        return {}
    if isinstance(where.node, Items):
        pairs = (item.text().partition("=") for item in where.items())
        return {name: value for name, equals, value in pairs if equals}
    return {
        name: item.loose_text()
        for name, item in where.table().items()
        if not isinstance(item.node, Scalar) or item.node.value is not None
    }
