"""What happened, for observers (notifications). An observer may fail; nothing depends on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing worth telling a person."""

    kind: str
    """Dotted word, e.g. `app.taken`, `app.frozen`, `snapshot.committed`, `promise.broken`."""
    group: str = ""
    app: str = ""
    device: str = ""
    wall_ms: int = 0
    text: str = ""
    """One sentence in plain words."""
    facts: Mapping[str, str] = field(default_factory=dict)
