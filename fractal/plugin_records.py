"""What a plugin's hooks may yield: each kind's record, checked before anybody uses it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from fractal.api.authority import AuthorityBackend
from fractal.api.backend import API_VERSION, Backend
from fractal.api.catalog import CatalogBackend
from fractal.api.coordination import CoordinationBackend
from fractal.api.health import HealthCheck
from fractal.api.runtime import RuntimeBackend
from fractal.api.snapshot import SnapshotBackend
from fractal.api.store import StoreBackend
from fractal.api.transport import TransportBackend

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")


class BadRecord(ValueError):
    """A plugin yields something that cannot be used; the text says what and what to change."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of backend."""

    hook: str
    record: type[Backend[Any, Any]]


KINDS: Mapping[str, Kind] = {
    "runtime": Kind("fractal_runtimes", RuntimeBackend),
    "snapshot": Kind("fractal_snapshotters", SnapshotBackend),
    "store": Kind("fractal_stores", StoreBackend),
    "transport": Kind("fractal_transports", TransportBackend),
    "authority": Kind("fractal_authorities", AuthorityBackend),
    "coordination": Kind("fractal_coordinators", CoordinationBackend),
    "catalog": Kind("fractal_catalogs", CatalogBackend),
}


def checked(kind: str, yielded: Iterable[object]) -> dict[str, Backend[Any, Any]]:
    """The records by name. Raises BadRecord for anything that is no sound record of this kind."""
    spec = KINDS[kind]
    records: dict[str, Backend[Any, Any]] = {}
    for record in yielded:
        if not isinstance(record, spec.record):
            raise BadRecord(f"{spec.hook} yields {type(record).__name__}, not {spec.record.__name__}")
        problem = _problem(record)
        if problem:
            raise BadRecord(f"{kind} {record.name!r}: {problem}")
        if record.name in records:
            raise BadRecord(f"{kind} {record.name!r} is yielded twice")
        records[record.name] = record
    return records


def checked_check(yielded: Iterable[object]) -> tuple[HealthCheck, ...]:
    """The health checks. Raises BadRecord."""
    checks = []
    for check in yielded:
        if not isinstance(check, HealthCheck):
            raise BadRecord(f"fractal_health_checks yields {type(check).__name__}, not HealthCheck")
        if check.api != API_VERSION:
            raise BadRecord(f"health check {check.name!r}: {_other_api(check.api)}")
        checks.append(check)
    return tuple(checks)


def _problem(record: Any) -> str:
    if record.api != API_VERSION:
        return _other_api(record.api)
    if not isinstance(record.name, str) or not _NAME.fullmatch(record.name):
        return "its name must be 1-40 characters of [a-z0-9_-]"
    if not isinstance(record.config, type) or not is_dataclass(record.config):
        return "its config must be a dataclass type"
    if not record.config.__dataclass_params__.frozen:  # type: ignore[attr-defined] # set by the decorator, unknown to typeshed
        return f"its config {record.config.__name__} must be frozen"
    undocumented = [f.name for f in fields(record.config) if not f.metadata.get("help")]
    if undocumented:
        return f"config field {undocumented[0]!r} lacks metadata={{'help': ...}}"
    if not callable(record.open):
        return "its open must be callable"
    return ""


def _other_api(api: int) -> str:
    return (
        f"made for plugin API {api}, this agent has {API_VERSION}: install a matching version of the plugin"
    )
