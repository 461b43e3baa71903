"""The datasets of the `zfs` snapshotter, as listed and as named.

    <dataset>/v-<volume>                      not mounted
    <dataset>/v-<volume>/d-<token>            data: the root (homeserver:root=on), or a line, which only holds snapshots
    <dataset>/v-<volume>/d-<token>@<number>-<name>    snapshots, numbered in the order they came within the volume
    <dataset>/v-<volume>/s-<number>           a snapshot to be read: a read-only clone (there is not always a `.zfs` folder)

A name of over 64 characters is kept as `:` and its digest, beside a property with the name itself. Which dataset a snapshot
lies in changes whenever one is promoted, its number and name never. A snapshot that was deleted, but has clones, is marked
(homeserver:deleted=on) and goes with the last of them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fractal.api.errors import Conflict, NotFound

ROOT = "homeserver:root"
VOLUME = "homeserver:volume"
NAME = "homeserver:name"
DELETED = "homeserver:deleted"
ASIDE = "homeserver:aside"
IDENTITY = "homeserver:identity"
COLUMNS = ("name", "origin", "mounted", "mountpoint", ROOT, NAME, DELETED, ASIDE, IDENTITY)

_LONGEST = 64
_SNAPSHOT = re.compile(r"([0-9]{12})-(.+)")
_VIEW = re.compile(r"s-([0-9]{12})")


@dataclass(frozen=True, slots=True)
class Kept:
    """A snapshot."""

    dataset: str
    number: int
    name: str
    deleted: bool
    aside: bool
    identity: str
    """Whose equal it is, for one that was made by replaying a stream of another file system; ""."""
    tag: str
    """What it is called behind the `@`."""

    @property
    def path(self) -> str:
        """As ZFS calls it."""
        return f"{self.dataset}@{self.tag}"


@dataclass(slots=True)
class Line:
    """A dataset with data."""

    dataset: str
    origin: str
    """Snapshot that it is a clone of, as ZFS calls it; "" if of none."""
    mounted: bool
    mountpoint: Path
    root: bool
    snapshots: list[Kept] = field(default_factory=list)
    """Oldest first, deleted ones too."""
    passing: list[str] = field(default_factory=list)
    """Snapshots that a look left behind."""

    @property
    def live(self) -> list[Kept]:
        """Those not deleted."""
        return [s for s in self.snapshots if not s.deleted]


@dataclass(slots=True)
class View:
    """A read-only clone."""

    dataset: str
    mounted: bool
    mountpoint: Path


@dataclass(slots=True)
class Volume:
    """What there is of a volume."""

    name: str
    dataset: str
    exists: bool = False
    lines: dict[str, Line] = field(default_factory=dict)
    """By dataset."""
    views: dict[int, View] = field(default_factory=dict)
    """By the snapshot's number."""

    @property
    def root(self) -> Line | None:
        """The line with the writable root."""
        return next((line for line in self.lines.values() if line.root), None)

    def all(self) -> Iterator[Kept]:
        """Every snapshot, deleted ones too."""
        for line in self.lines.values():
            yield from line.snapshots

    def live(self) -> list[Kept]:
        """Snapshots, oldest first."""
        return sorted((s for s in self.all() if not s.deleted), key=lambda s: s.number)

    def find(self, name: str) -> Kept:
        """Raises NotFound."""
        for kept in self.live():
            if kept.name == name:
                return kept
        raise NotFound(f"snapshot zfs: volume {self.name} has no snapshot {name}")

    def refuse_existing(self, name: str) -> None:
        """Raises Conflict."""
        if any(kept.name == name for kept in self.live()):
            raise Conflict(f"snapshot zfs: volume {self.name} has a snapshot {name} already")

    def need_root(self) -> Line:
        """Raises NotFound."""
        if self.root is None:
            raise NotFound(f"snapshot zfs: volume {self.name} has no root")
        return self.root

    def next_tag(self, name: str) -> str:
        """For a new snapshot; no other of the volume has its number, so that a promotion never finds a name twice."""
        number = max((kept.number for kept in self.all()), default=0) + 1
        return f"{number:012d}-{short(name)}"

    def view_of(self, kept: Kept) -> str:
        """The dataset by which a snapshot is read."""
        return f"{self.dataset}/s-{kept.number:012d}"

    def descends(self, kept: Kept, parent: Kept) -> bool:
        """Whether the snapshot came after the parent in one history."""
        line = self.lines[kept.dataset]
        number = kept.number
        for _ in range(len(self.lines)):
            if line.dataset == parent.dataset:
                return parent.number < number
            dataset, _, tag = line.origin.partition("@")
            match = _SNAPSHOT.fullmatch(tag)
            if dataset not in self.lines or match is None:
                return False
            line, number = self.lines[dataset], int(match[1]) + 1
        return False


def short(name: str) -> str:
    """The name, or what stands for it."""
    return name if len(name) <= _LONGEST else ":" + hashlib.blake2b(name.encode(), digest_size=20).hexdigest()


def name_options(prop: str, name: str) -> list[str]:
    """Options of `zfs create` and the like that keep a name which its dataset's own does not show."""
    return [] if short(name) == name else ["-o", f"{prop}={name}"]


def parse(name: str, dataset: str, rows: Sequence[Sequence[str]]) -> Volume:
    """A volume out of `zfs list -H -r -t filesystem,snapshot -o COLUMNS`."""
    volume = Volume(name, dataset)
    for path, origin, mounted, mountpoint, root, *rest in rows:
        place, _, tag = path.partition("@")
        if place == dataset:
            volume.exists = True
            continue
        last = place.rpartition("/")[2]
        if tag and place in volume.lines:
            _add(volume.lines[place], tag, rest)
        elif not tag and last.startswith("d-"):
            volume.lines[place] = Line(
                place, _value(origin), mounted == "yes", Path(mountpoint), root == "on"
            )
        elif not tag and (match := _VIEW.fullmatch(last)):
            volume.views[int(match[1])] = View(place, mounted == "yes", Path(mountpoint))
    for line in volume.lines.values():
        line.snapshots.sort(key=lambda s: s.number)
    return volume


def _add(line: Line, tag: str, rest: Sequence[str]) -> None:
    name, deleted, aside, identity = rest
    match = _SNAPSHOT.fullmatch(tag)
    if match is None:
        line.passing.append(tag)
        return
    known = match[2] if not match[2].startswith(":") else _value(name)
    line.snapshots.append(
        Kept(
            dataset=line.dataset,
            number=int(match[1]),
            name=known,
            # Killed between the receiving and the naming: nobody knows what it is.
            deleted=deleted == "on" or not known,
            aside=aside == "on",
            identity=_value(identity),
            tag=tag,
        )
    )


def _value(text: str) -> str:
    return "" if text == "-" else text
