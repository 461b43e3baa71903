"""What this device durably knows of one app: one small value, replaced as a whole in one local transaction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from fractal.agent.notes import Notes
from fractal.api.canonical import decode, encode
from fractal.api.plain import from_plain, to_plain
from fractal.core.lease import Standing
from fractal.core.model import Point

RESTORED = "p-"
"""Begins the names of local snapshots that came from the archive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Queued:
    """A snapshot that was taken here and is not stored yet."""

    name: str
    epoch: int
    wall_ms: int
    parent: Point | None = None
    """What was committed when it was taken."""
    branch: bool = False
    """It belongs to an epoch that was replaced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Local:
    """Durable facts. `names` gives, for a point as "epoch.number", the local snapshot that holds it."""

    waited: int = 0
    released: int = 0
    clean: int = 0
    stated: int = 0
    """Epoch of this device whose object was created or seen here last ..."""
    proof: int = 0
    """... and the longest proof, in milliseconds, that it allows: its takers wait by that."""
    root: int = 0
    counter: int = 0
    queue: tuple[Queued, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    committed: Point | None = None
    committed_ms: int = 0
    """Wall-clock label of the last committed snapshot."""
    spec: str = ""
    """Digest of the specification and secrets that the root's epoch was last started with; "" before the first start."""
    updated_ms: int = 0
    """When it was given another specification, until it is healthy with that; then 0."""
    hooked: str = ""
    """Key of the run whose hooks before a snapshot were begun, until those after it are done; then ""."""

    @property
    def ticks(self) -> tuple[Queued, ...]:
        """What is queued of the present epoch; branches of replaced ones are in nobody's way."""
        return tuple(q for q in self.queue if not q.branch and q.epoch == self.root)

    @property
    def standing(self) -> Standing:
        """The part that the lease rules use."""
        return Standing(waited=self.waited, released=self.released, clean=self.clean, root=self.root)

    def named(self, point: Point, name: str) -> Local:
        """The same, knowing that snapshot `name` holds `point`."""
        return replace(self, names={**self.names, f"{point.epoch}.{point.number}": name})

    def name_of(self, point: Point) -> str:
        """Name of the local snapshot for a point: the one that holds it, else the one that a restore gives it."""
        return self.names.get(f"{point.epoch}.{point.number}", f"{RESTORED}{point.epoch}-{point.number}")


class LocalFacts:
    """Reads and replaces an app's `Local`."""

    def __init__(self, notes: Notes, group: str, app: str) -> None:
        self._notes = notes
        self._key = f"app/{group}/{app}"
        stored = notes.get(self._key)
        # A newer agent may have noted more.
        self.now = from_plain(Local, decode(stored), drop_unknown=True) if stored else Local()
        self._standing = (self.now, self.now.standing)

    @property
    def standing(self) -> Standing:
        """`now.standing`, made once for each value: it is asked for several times a second."""
        if self._standing[0] is not self.now:
            self._standing = (self.now, self.now.standing)
        return self._standing[1]

    def change(self, **changes: object) -> Local:
        """Replace fields durably before returning."""
        return self.put(replace(self.now, **changes))  # type: ignore[arg-type]  # dataclasses.replace checks names itself

    def put(self, value: Local) -> Local:
        """Replace the whole value durably before returning."""
        if value != self.now:
            self._notes.write({self._key: encode(to_plain(value))})
            self.now = value
        return value

    def forget(self) -> None:
        """The app is gone."""
        self._notes.write({self._key: None})
        self.now = Local()
