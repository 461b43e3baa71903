"""Which segments of an app's objects a store lists. It may make names up for ever: only what is asked about is kept in mind."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable

from fractal.api.errors import BackendError
from fractal.api.store import ObjectInfo, Store
from fractal.archive import layout
from fractal.archive.records import ObjectRef, Record

MOST_LISTED = 4_000_000
"""Segments that are looked at: 256 TiB."""
MOST_UNNAMED = 50_000
"""Segments of objects that nothing names that are kept in mind at a time: 3 TiB."""


def keys_of(group: str, app: str, ref: ObjectRef) -> list[str]:
    """The names of an object's segments, in order."""
    return [layout.segment_key(group, app, ref.id, index) for index in range(len(ref.segments))]


async def sizes_of(store: Store, group: str, app: str, records: Iterable[Record]) -> dict[str, int]:
    """Sizes of the segments of these records that stand, by name. Raises BackendError."""
    wanted = {key for record in records for key in keys_of(group, app, record.body.object)}
    return {info.key: info.size async for info in _segments(store, group, app) if info.key in wanted}


async def unnamed(store: Store, group: str, app: str, named: Collection[str]) -> dict[str, dict[str, int]]:
    """Objects but those `named`, each with its segments' names and sizes: the first so many segments. Raises BackendError."""
    found: dict[str, dict[str, int]] = {}
    most = MOST_UNNAMED
    async for info in _segments(store, group, app):
        parsed = layout.parse_segment_key(group, app, info.key)
        if parsed is not None and parsed[0] not in named and most > 0:
            most -= 1
            found.setdefault(parsed[0], {})[info.key] = info.size
    return found


async def _segments(store: Store, group: str, app: str) -> AsyncIterator[ObjectInfo]:
    prefix, count = layout.objects_prefix(group, app), 0
    async for info in store.list(prefix):
        count += 1
        if count > MOST_LISTED:
            raise BackendError(
                f"the store lists more than {MOST_LISTED} objects below {prefix}: check the store"
            )
        yield info
