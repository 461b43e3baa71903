"""What devices tell each other by signal: small, signed, sealed with the group key, best-effort, never proof.

A made-up beat cannot make two devices run one app. It could keep a dead one from being challenged, so nobody makes one up:
neither the log server, which may have recorded old ones, nor another device of the group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fractal.agent.notes import Notes
from fractal.api.canonical import decode, encode, pack, unpack
from fractal.api.errors import InvalidInput
from fractal.api.plain import from_plain, to_plain
from fractal.core.model import Point
from fractal.crypto.keys import DeviceKeys, statement, verify


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorBeat:
    """An owner about one mirror of an app's archive."""

    behind: int = -1
    """Records that it lacks; -1: not known yet."""
    since: int = -1
    """Milliseconds for which it has been behind; -1: it is level, or nothing is known."""
    problem: str = ""
    """Why it does not get level."""


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
    mirrors: Mapping[str, MirrorBeat] = field(default_factory=dict)
    """By store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """A device about itself."""

    device: str
    run: int
    """Rises with each run of its agent ..."""
    number: int
    """... and this with each beat of a run: a beat that is not above the last one heard was recorded and sent again."""
    apps: Mapping[str, AppBeat] = field(default_factory=dict)
    warm: Mapping[str, Point] = field(default_factory=dict)
    """App -> newest snapshot that is here."""
    nonce: str = ""
    """New with each run of its agent; questions to it name it (`agent.remote`)."""
    capacity: int = 0
    """Free memory in MiB."""
    wall_ms: int = 0
    """The sender's wall clock, so that one that is wrong can be told; nothing else goes by it."""


def beat_bytes(beat: Beat, group: str, keys: DeviceKeys) -> bytes:
    """A beat as it is sealed: signed, as the group's key proves only that somebody of the group wrote it."""
    said = encode(to_plain(beat))
    # The canonical form of {"beat": ..., "sig": ...}, made of what is signed: not encoded twice.
    return b'{"beat":%s,"sig":"%s"}' % (said, pack(keys.sign(_signed(group, said))).encode())


def read_beat(data: bytes, group: str, sign_key_of: Callable[[str], bytes | None]) -> Beat:
    """A received beat of the device that it names. Raises InvalidInput."""
    value = decode(data, limit=32 << 10)
    plain, sig = value.get("beat"), value.get("sig")
    if not isinstance(plain, dict) or not isinstance(sig, str) or len(value) != 2:
        raise InvalidInput("not a beat")
    # A newer agent may say more than this one knows.
    beat = from_plain(Beat, plain, drop_unknown=True)
    key = sign_key_of(beat.device)
    # What was decoded is canonical, so what was signed stands in it as it was: not encoded once more.
    said = data[len(b'{"beat":') : -len(b',"sig":""}') - len(sig)]
    if key is None or not verify(key, _signed(group, said), unpack(sig)):
        raise InvalidInput(f"a beat that device {beat.device[:40]!r} did not sign")
    return beat


def _signed(group: str, said: bytes) -> bytes:
    return statement("beat", group.encode(), said)


class Voice:
    """Numbers this device's beats, also across runs of its agent, so that none of them can be played again."""

    def __init__(self, notes: Notes, group: str) -> None:
        note = f"group/{group}/run"
        self.run = int(notes.get(note) or b"0") + 1
        notes.write({note: b"%d" % self.run})
        self._number = 0

    def next(self) -> int:
        """The next beat's number."""
        self._number += 1
        return self._number


class Ear:
    """Knows which beats are news. What was said before this agent began to listen it cannot tell from what is said now."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[int, int]] = {}

    def news(self, beat: Beat) -> bool:
        """Whether the device said this after all that was heard of it."""
        at = (beat.run, beat.number)
        if at <= self._last.get(beat.device, (0, 0)):
            return False
        self._last[beat.device] = at
        return True
