"""`log`: the entries for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fractal.agent.control.dispatch import command
from fractal.agent.control.names import find_group
from fractal.agent.control.params import Params
from fractal.agent.control.ports import ControlAgent
from fractal.agent.control.progress import Progress
from fractal.api.errors import InvalidInput

DEFAULT_TAIL = 50
MAX_VALUE = 60
"""Characters shown of one field."""
_HIDDEN = frozenset(
    {
        *(
            "secrets",
            "config",
            "key",
            "app_keys",
            "sealed",
            "sealed_keys",
            "group_keys",
            "lobby_key",
            "key_check",
        ),
        *("certificate", "sign_key", "box_key", "verify_key", "contact", "manifest", "spec"),
    }
)
"""Fields that hold keys or credentials, sealed or not, or are too long for a line: outputs are copied around."""


@command("log.show")
async def show_log(agent: ControlAgent, params: Params, _: Progress) -> dict[str, Any]:
    """The last entries as far as this device can read them."""
    tail = params.integer("tail", DEFAULT_TAIL)
    if tail < 0:
        raise InvalidInput("log.show: tail must not be negative")
    journal = find_group(agent, params).journal
    after = max(0, journal.state.position - tail) if tail else 0
    return {
        "entries": [
            {
                "position": entry["position"],
                "author": journal.state.device_name(str(entry["author"] or "")),
                "kind": str(entry["kind"] or ""),
                "summary": summary(entry["body"]),
                "skipped": str(entry["skipped"]),
            }
            for entry in journal.show(after=after)
        ]
    }


def summary(body: object) -> str:
    """One line out of an entry's fields, without what may be secret and without long values."""
    if not isinstance(body, Mapping):
        return ""
    parts = []
    for name, value in body.items():
        if name in _HIDDEN or value in (None, "", [], {}):
            continue
        text = value if isinstance(value, str) else _brief(value)
        parts.append(f"{name}={text[:MAX_VALUE]}{'...' if len(text) > MAX_VALUE else ''}")
    return " ".join(parts).replace("\n", " ")


def _brief(value: object) -> str:
    """A value by its name where it has one, else as JSON."""
    if isinstance(value, Mapping) and isinstance(value.get("name"), str):
        return str(value["name"])
    return json.dumps(_without_hidden(value), ensure_ascii=False, default=repr)


def _without_hidden(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(k): _without_hidden(v) for k, v in value.items() if k not in _HIDDEN}
    if isinstance(value, list | tuple):
        return [_without_hidden(v) for v in value]
    return value
