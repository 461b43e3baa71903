"""What devices tell each other by signal: small, sealed with the group key, best-effort, never proof."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from fractal.api.canonical import decode, encode
from fractal.api.errors import InvalidInput
from fractal.api.plain import from_plain, to_plain
from fractal.core.model import Point


@dataclass(frozen=True, slots=True, kw_only=True)
class AppBeat:
    """An owner about an app of its own."""

    epoch: int
    health: str = "stopped"
    frozen: bool = False
    committed: Point | None = None
    """Last committed snapshot."""
    would_lose: int = -1
    """Milliseconds of data that would be lost now; -1: not known."""
    spec: str = ""
    """Digest of the specification that runs; "" while it is not the one that the log has."""
    detail: str = ""
    """What is wrong, in one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """A device about itself."""

    device: str
    number: int
    """Rises by one with each beat of an agent's run."""
    apps: Mapping[str, AppBeat] = field(default_factory=dict)
    warm: Mapping[str, Point] = field(default_factory=dict)
    """App -> newest snapshot that is here."""
    nonce: str = ""
    """New with each run of its agent; questions to it name it (`agent.remote`)."""
    capacity: int = 0
    """Free memory in MiB."""
    heard: float = 0.0
    """Receiver's boottime; not sent."""


def beat_bytes(beat: Beat) -> bytes:
    """A beat as it is sealed."""
    return encode(to_plain(beat))


def read_beat(data: bytes, heard: float) -> Beat:
    """A received beat. Raises InvalidInput."""
    value = decode(data, limit=32 << 10)
    if "heard" in value:
        raise InvalidInput("a beat does not say when it is heard")
    # A newer agent may say more than this one knows.
    beat = from_plain(Beat, value, drop_unknown=True)
    return replace(beat, heard=heard)
