"""Configuration of the `memory` coordination backend. Light: read by the command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fractal.builtin.memory_log import MemoryHub


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryLogConfig:
    """Logs that live in this process and end with it; for tests and simulation."""

    hub: MemoryHub | None = field(
        default=None,
        metadata={"help": "The hub that the coordinators of one test share. Empty: a hub of its own."},
    )
