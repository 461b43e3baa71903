"""What the runtime knows of a run beyond the guard: written beside the run's scratch files, gone with the next boot."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fractal.api.app import AppRun, HealthSpec, Port, ServiceSpec

FILE = "state.json"


@dataclass(slots=True)
class ServiceRecord:
    """One service. Holds no secret and nothing that a placeholder was replaced in."""

    name: str
    ports: dict[str, int] = field(default_factory=dict)
    health: HealthSpec | None = None
    stop_signal: str = "SIGTERM"
    stop_grace: float = 10.0
    restart: str = "always"
    pid: int = 0
    """Of the last start."""
    restarts: int = 0
    streak: int = 0
    """Restarts in a row after short lives; what the back-off grows with."""


@dataclass(slots=True)
class RunRecord:
    """One run."""

    group: str
    app: str
    epoch: int
    stopped: bool = False
    """Stopped on purpose: nothing of it is expected to run."""
    services: dict[str, ServiceRecord] = field(default_factory=dict)


def record_of(run: AppRun, old: RunRecord | None) -> RunRecord:
    """The record for a start of `run`; ports and counts of an earlier start are kept."""
    record = RunRecord(run.group, run.app, run.epoch)
    for spec in run.spec.services:
        known = old.services.get(spec.name) if old is not None else None
        record.services[spec.name] = _service(spec, known)
    return record


def fixed_port(spec: ServiceSpec, port: Port) -> int:
    """The number that the service must listen on, 0 if any will do. Beside an image the number is the container's."""
    return 0 if spec.image else port.container


def _service(spec: ServiceSpec, known: ServiceRecord | None) -> ServiceRecord:
    record = known or ServiceRecord(spec.name)
    record.ports = {p.name: fixed_port(spec, p) or record.ports.get(p.name, 0) for p in spec.ports}
    # A health command's placeholders are filled at each start; until then the last start's stands for what runs.
    record.health = record.health if known is not None and spec.health is not None else spec.health
    record.stop_signal = spec.stop_signal
    record.stop_grace, record.restart = spec.stop_grace, spec.restart
    return record


def save(folder: Path, record: RunRecord) -> None:
    """Replace the record, atomically."""
    draft = folder / (FILE + ".new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(asdict(record), file)
    draft.replace(folder / FILE)


def mark(folder: Path) -> tuple[int, int, int] | None:
    """Changes with every `save`; None if there is no record."""
    try:
        status = os.stat(f"{folder}/{FILE}")  # noqa: PTH116 - at every look at every run: no path is made for it
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def load(folder: Path) -> RunRecord | None:
    """The record; None if there is none. Raises ValueError if it is damaged."""
    try:
        value = json.loads((folder / FILE).read_bytes())
    except FileNotFoundError:
        return None
    try:
        services = {name: _load_service(item) for name, item in value.pop("services").items()}
        return RunRecord(services=services, **value)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{folder / FILE}: damaged: {error}") from error


def _load_service(item: dict[str, Any]) -> ServiceRecord:
    health = item.pop("health")
    if health is not None:
        health = HealthSpec(**{**health, "test": tuple(health["test"])})
    return ServiceRecord(health=health, **item)
