"""A device's configuration as frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fractal.core.model import DeviceRole

DEFAULT_STATE = Path("/var/lib/homeserver")
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """A backend that the configuration names."""

    backend: str
    settings: Any
    """An instance of the backend's own config dataclass."""
    name: str = ""
    """What people call it, where there can be several (catalogs)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSection:
    """`[device]`."""

    name: str = field(metadata={"help": "What people call this device."})
    state_dir: Path = field(
        default=DEFAULT_STATE, metadata={"help": "Folder for all that must survive a restart."}
    )
    runtime_dir: Path | None = field(
        default=None, metadata={"help": "Folder for sockets. Default: `run` in state_dir."}
    )
    roles: frozenset[DeviceRole] = field(
        default=frozenset({DeviceRole.HOST}),
        metadata={"help": "What it does when it joins a group: host, store, gateway."},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """This device, with every path absolute."""

    name: str
    state_dir: Path
    runtime_dir: Path
    roles: frozenset[DeviceRole]


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSection:
    """`[log]`."""

    level: str = field(default="INFO", metadata={"help": "DEBUG, INFO, WARNING or ERROR.", "choices": LEVELS})


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginsSection:
    """`[plugins]`."""

    enabled: tuple[str, ...] = field(
        default=(),
        metadata={"help": "Plugins to load for what they observe or check; backends need no mention."},
    )
    disabled: tuple[str, ...] = field(
        default=(), metadata={"help": "Installed plugins that are never loaded."}
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceConfig:
    """Everything that one device's file says, with the defaults filled in."""

    path: Path
    device: Device
    runtime: Chosen
    snapshot: Chosen
    transport: Chosen
    authority: Chosen
    coordination: Chosen
    catalogs: tuple[Chosen, ...]
    stores: Mapping[str, Mapping[str, object]] = field(default_factory=dict, repr=False)
    """`[store.NAME]`: what this device adds to or changes in the group's configuration of a store, as written."""
    log: LogSection = field(default_factory=LogSection)
    plugins: PluginsSection = field(default_factory=PluginsSection)
