"""docs/reference/configuration.md, made from the dataclasses that read the file."""

from __future__ import annotations

import json
from typing import Any

from reference import MADE, table, template

from fractal.config.loading import DEFAULT_CATALOG, DEFAULTS, SCHEMA
from fractal.config.model import DeviceSection, LogSection, PluginsSection
from fractal.config.schema import settings
from fractal.plugins import Plugins

KIND_WORDS = {
    "runtime": "What runs the services of apps.",
    "snapshot": "What keeps the apps' volumes and takes snapshots of them.",
    "transport": "How gateways and devices reach each other.",
    "authority": "Who gives the certificates for the names under which apps are reached.",
    "coordination": "Where the groups' logs are.",
}
HEAD = ("Key", "Type", "Default", "Meaning")


def config_page() -> str:
    """Every key of the file, with the tables of the builtin backends."""
    plugins = Plugins([])
    parts = [MADE, "# Configuration\n", template("configuration.md")]
    parts.append("## Top level\n")
    parts.append(
        table(
            HEAD,
            [
                (
                    "`schema`",
                    "integer",
                    f"`{SCHEMA}`",
                    f"Version of the file's form; {SCHEMA} is the only one.",
                )
            ],
        )
    )
    parts += ["## `[device]`\n", _table_of(DeviceSection)]
    for kind, default in DEFAULTS.items():
        names = plugins.names(kind)
        parts.append(f"## `[{kind}]`\n")
        parts.append(f"{KIND_WORDS[kind]}\n")
        choice = " or ".join(f"`{name}`" for name in names)
        parts.append(table(HEAD, [("`backend`", "string", f'`"{default}"`', f"Builtin: {choice}.")]))
        for name in names:
            record = plugins.backend(kind, name)
            parts += [f"### `[{kind}.{name}]`\n", record.summary + "\n", _table_of(record.config)]
    parts += _catalogs(plugins)
    parts += _stores(plugins)
    parts += ["## `[log]`\n", _table_of(LogSection)]
    parts += ["## `[plugins]`\n", _table_of(PluginsSection)]
    return "\n".join(parts).rstrip() + "\n"


def _catalogs(plugins: Plugins) -> list[str]:
    parts = ["## `[[catalog]]`\n"]
    parts.append(
        "Where manifests come from; several are allowed, and are searched in their order. Without any there is one of "
        f"backend `{DEFAULT_CATALOG}` with its defaults. The backend's settings stand beside these two.\n"
    )
    rows = [
        ("`backend`", "string", f'`"{DEFAULT_CATALOG}"`', "Name of the backend."),
        ("`name`", "string", "the backend's name", "What it is called in `catalog list` and `--catalog`."),
    ]
    parts.append(table(HEAD, rows))
    for name in plugins.names("catalog"):
        record = plugins.backend("catalog", name)
        parts += [
            f"### `[[catalog]]` with backend `{name}`\n",
            record.summary + "\n",
            _table_of(record.config),
        ]
    return parts


def _stores(plugins: Plugins) -> list[str]:
    parts = ["## `[store.NAME]`\n"]
    parts.append(
        "Stores belong to the group: `homeserver store add NAME BACKEND KEY=VALUE...` puts the settings below into its log. "
        "A table `[store.NAME]` of a device's own file wins over them on that device, key by key: for a path or an address "
        "that differs there. These are the settings of the builtin stores.\n"
    )
    for name in plugins.names("store"):
        record = plugins.backend("store", name)
        parts += [f"### Store backend `{name}`\n", record.summary + "\n", _table_of(record.config)]
    return parts


def _table_of(kind: type) -> str:
    rows = [(f"`{s['name']}`", s["type"], _default(s), s["help"]) for s in settings(kind)]
    return table(HEAD, rows) if rows else "No settings.\n"


def _default(setting: dict[str, Any]) -> str:
    if setting["required"]:
        return "required"
    default = setting["default"]
    return "-" if default is None else f"`{json.dumps(default, ensure_ascii=False)}`"
