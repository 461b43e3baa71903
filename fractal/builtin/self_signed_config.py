"""Configuration of the `self-signed` authority."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SelfSignedConfig:
    """Nothing can be set."""
