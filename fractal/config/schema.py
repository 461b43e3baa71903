"""The configuration's JSON Schema and a commented first file, both made from the dataclasses that read it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_origin

from fractal.api.backend import Backend
from fractal.config.convert import Unset, default_of, field_types, optional_inner, required
from fractal.config.loading import DEFAULT_CATALOG, DEFAULTS, SCHEMA
from fractal.config.model import DeviceSection, LogSection, PluginsSection
from fractal.plugins import Plugins

_SCALARS: Mapping[Any, Mapping[str, str]] = {
    str: {"type": "string"},
    Path: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
}


def schema(plugins: Plugins) -> dict[str, Any]:
    """JSON Schema (2020-12) of the file, with the tables of every plugin loaded in `plugins`."""
    properties: dict[str, Any] = {"schema": {"const": SCHEMA}}
    for name, kind in (("device", DeviceSection), ("log", LogSection), ("plugins", PluginsSection)):
        properties[name] = _table(kind)
    for kind_name, default in DEFAULTS.items():
        names = plugins.names(kind_name)
        tables = {name: _table(plugins.backend(kind_name, name).config) for name in names}
        backend = {"enum": list(names), "default": default}
        properties[kind_name] = _closed({"backend": backend, **tables})
    properties["catalog"] = {
        "type": "array",
        "items": {"oneOf": [_catalog(plugins, n) for n in plugins.names("catalog")]},
    }
    properties["store"] = {
        "type": "object",
        "description": "What this device adds to the configuration of a group's store, by the store's name.",
        "additionalProperties": {"type": "object"},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Fractal HomeServer: one device",
        **_closed(properties, ["device"]),
    }


def sample(name: str, state_dir: Path, plugins: Plugins) -> str:
    """A first configuration: the few keys that matter set, the settings of the default backends as comments."""
    parts = [
        "# One device's configuration. Check it with: homeserver config check",
        f"schema = {SCHEMA}",
        "",
        "[device]",
        *_commented(DeviceSection, {"name": name, "state_dir": str(state_dir), "roles": ["host"]}),
    ]
    for kind, default in DEFAULTS.items():
        record = plugins.backend(kind, default)
        parts += ["", f"[{kind}]", f'backend = "{default}"  # {record.summary}']
        settings = _commented(record.config, {})
        parts += ["", f"[{kind}.{default}]", *settings] if settings else []
    catalog = plugins.backend("catalog", DEFAULT_CATALOG)
    parts += ["", "[[catalog]]", f'backend = "{DEFAULT_CATALOG}"  # {catalog.summary}']
    for section, kind_ in (("log", LogSection), ("plugins", PluginsSection)):
        parts += ["", f"[{section}]", *_commented(kind_, {})]
    return "\n".join(parts) + "\n"


def shown(record: Backend[Any, Any]) -> list[dict[str, Any]]:
    """A backend's settings, for `plugin show`."""
    return settings(record.config)


def settings(kind: type) -> list[dict[str, Any]]:
    """What a configuration can set of a config dataclass: name, type, whether required, default, help."""
    found = []
    for name, (field, type_) in field_types(kind).items():
        if type_ is Unset:
            continue
        found.append(
            {
                "name": name,
                "type": _words(type_),
                "required": required(field),
                "default": plain(default_of(field)),
                "help": field.metadata.get("help", ""),
            }
        )
    return found


def _catalog(plugins: Plugins, name: str) -> dict[str, Any]:
    table = _table(plugins.backend("catalog", name).config)
    own = {"backend": {"const": name}, "name": {"type": "string"}}
    return {**table, "properties": {**own, **table["properties"]}}


def _table(kind: type) -> dict[str, Any]:
    properties, needed = {}, []
    for name, (field, type_) in field_types(kind).items():
        if type_ is Unset:
            continue
        properties[name] = _type(type_)
        for key, value in (("description", "help"), ("enum", "choices"), ("minimum", "minimum")):
            if value in field.metadata:
                found = field.metadata[value]
                properties[name][key] = list(found) if isinstance(found, tuple) else found
        if required(field):
            needed.append(name)
    return _closed(properties, needed)


def _closed(properties: dict[str, Any], needed: list[str] | None = None) -> dict[str, Any]:
    result: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**result, "required": needed} if needed else result


def _type(kind: Any) -> dict[str, Any]:
    inner = optional_inner(kind)
    if inner is not None:
        return _type(inner)
    origin = get_origin(kind)
    if origin in (tuple, frozenset):
        return {"type": "array", "items": _type(get_args(kind)[0])}
    if origin is not None:
        return {"type": "object", "additionalProperties": _type(get_args(kind)[1])}
    if isinstance(kind, type) and issubclass(kind, Enum):
        return {"enum": [member.value for member in kind]}
    return dict(_SCALARS[kind]) if kind in _SCALARS else _table(kind)


def _words(kind: Any) -> str:
    if Path in (kind, optional_inner(kind)):
        return "path"
    found = _type(kind)
    if "enum" in found:
        return " | ".join(map(str, found["enum"]))
    return f"list of {_words(get_args(kind)[0])}" if found["type"] == "array" else str(found["type"])


def plain(value: Any) -> Any:
    """A setting as JSON shows it."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple | list | frozenset):
        return sorted(plain(v) for v in value) if isinstance(value, frozenset) else [plain(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _commented(kind: type, given: Mapping[str, Any]) -> list[str]:
    """Each field: its help as a comment, then the value given, else the default commented out."""
    lines = []
    for name, (field, type_) in field_types(kind).items():
        if type_ is Unset:
            continue
        if field.metadata.get("help"):
            lines.append(f"# {field.metadata['help']}")
        if name in given:
            lines.append(f"{name} = {_toml(given[name])}")
            continue
        default = default_of(field)
        lines.append(f"# {name} = {_toml(plain(default)) if default is not None else '...'}")
    return lines


def _toml(value: Any) -> str:
    """A string, number, truth value or list of these as TOML: JSON's forms, which TOML shares, but for DEL."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
