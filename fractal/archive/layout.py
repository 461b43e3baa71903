"""Where everything is in a store: the names of docs/explanation/archive.md, and nothing else knows them.

Everything is created once and never overwritten. A listing is a hint; records and epochs, which are signed, are the truth.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from fractal.core.model import Point
from fractal.core.retention import Slot

MAX_NUMBER = 10**15
"""Numbers of epochs and records stay below this; longer ones were not written by us."""

REMEMBERED = 4096
"""Names that are read once."""
_ID = re.compile(r"[0-9a-f]{8,128}")
_NUMBER = re.compile(r"[1-9][0-9]{0,14}")


@dataclass(frozen=True, slots=True)
class EpochKey:
    """What the name of an epoch object or of a base says."""

    app: str
    epoch: int
    base: bool = False


def is_id(text: str) -> bool:
    """Whether `text` may be a group, app or object id (lower-case hex)."""
    return _ID.fullmatch(text) is not None


def epochs_prefix(group: str) -> str:
    """Every epoch object and base of a group."""
    return f"{group}/epoch/"


def epoch_key(group: str, app: str, epoch: int) -> str:
    """The object whose creation takes `epoch`: the lock."""
    return f"{group}/epoch/{app}/{epoch}"


def base_key(group: str, app: str, epoch: int) -> str:
    """What `epoch` starts from."""
    return f"{epoch_key(group, app, epoch)}/base"


@lru_cache(maxsize=REMEMBERED)
def parse_epoch_key(group: str, key: str) -> EpochKey | None:
    """The inverse of `epoch_key` and `base_key`; None for any other name. Remembered, as `parse_slot_key` is."""
    prefix = epochs_prefix(group)
    if not key.startswith(prefix):
        return None
    match key[len(prefix) :].split("/"):
        case [app, number] if is_id(app) and _NUMBER.fullmatch(number):
            return EpochKey(app, int(number))
        case [app, number, "base"] if is_id(app) and _NUMBER.fullmatch(number):
            return EpochKey(app, int(number), base=True)
        case _:
            return None


def record_key(group: str, app: str, point: Point) -> str:
    """The record of one committed snapshot."""
    return f"{epoch_records_prefix(group, app, point.epoch)}{point.number}"


def records_prefix(group: str, app: str) -> str:
    """The records of every epoch, of every level, and none of the (many) objects or the trims."""
    return f"{group}/{app}/record/"


def epoch_records_prefix(group: str, app: str, epoch: int) -> str:
    """The records of one epoch, of every level."""
    return f"{records_prefix(group, app)}{epoch}/"


def level_key(group: str, app: str, point: Point, level: int) -> str:
    """Another record of a moment: one that merges what led to it."""
    return f"{epoch_records_prefix(group, app, point.epoch)}level/{point.number}/{level}"


def slot_key(group: str, app: str, slot: Slot) -> str:
    """The record of a moment at a level; 0: its own."""
    point, level = slot
    return level_key(group, app, point, level) if level else record_key(group, app, point)


@lru_cache(maxsize=REMEMBERED)
def parse_slot_key(group: str, app: str, key: str) -> Slot | None:
    """The inverse of `slot_key`; None for any other name. Remembered, as every listing shows all the names again."""
    prefix = records_prefix(group, app)
    if not key.startswith(prefix):
        return None
    match key[len(prefix) :].split("/"):
        case [epoch, "level", number, ("1" | "2" | "3") as level] if _NUMBER.fullmatch(
            epoch
        ) and _NUMBER.fullmatch(number):
            return Point(epoch=int(epoch), number=int(number)), int(level)
        case _:
            point = parse_record_key(group, app, key)
            return None if point is None else (point, 0)


def trims_prefix(group: str, app: str) -> str:
    """What was decided to let go."""
    return f"{group}/{app}/trim/"


def trim_key(group: str, app: str, number: int) -> str:
    """One decision about what stays."""
    return f"{trims_prefix(group, app)}{number}"


def parse_trim_key(group: str, app: str, key: str) -> int | None:
    """The inverse of `trim_key`; None for any other name."""
    prefix = trims_prefix(group, app)
    rest = key.removeprefix(prefix) if key.startswith(prefix) else ""
    return int(rest) if _NUMBER.fullmatch(rest) else None


def parse_record_key(group: str, app: str, key: str) -> Point | None:
    """The inverse of `record_key`; None for any other name."""
    prefix = records_prefix(group, app)
    if not key.startswith(prefix):
        return None
    match key[len(prefix) :].split("/"):
        case [epoch, number] if _NUMBER.fullmatch(epoch) and _NUMBER.fullmatch(number):
            return Point(epoch=int(epoch), number=int(number))
        case _:
            return None


def objects_prefix(group: str, app: str) -> str:
    """Every segment of every object of an app."""
    return f"{group}/{app}/object/"


def segment_key(group: str, app: str, object_id: str, index: int) -> str:
    """One segment of an object."""
    return f"{group}/{app}/object/{object_id}/{index}"


def parse_segment_key(group: str, app: str, key: str) -> tuple[str, int] | None:
    """Object id and index; None for any other name."""
    prefix = objects_prefix(group, app)
    if not key.startswith(prefix):
        return None
    match key[len(prefix) :].split("/"):
        case [object_id, index] if is_id(object_id) and (index == "0" or _NUMBER.fullmatch(index)):
            return object_id, int(index)
        case _:
            return None
