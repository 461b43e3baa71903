"""Health checks: what `homeserver doctor` runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from fractal.api.context import Context


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong, and what to do about it."""

    what: str
    remedy: str
    severe: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthCheck:
    """A named check. It only looks; it never repairs."""

    name: str
    summary: str
    check: Callable[[Context], Awaitable[Sequence[Finding]]]
    api: int = 1
