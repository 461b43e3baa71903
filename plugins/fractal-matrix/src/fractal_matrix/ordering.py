"""Arrival order of a room's events, from pages that the homeserver sorts by the event graph.

Synapse numbers a room's events as they arrive (`stream`), one after the other, and `/messages` from a position in that stream
returns all that arrived later, which makes reading free of gaps. But it sorts them by their depth in the event graph and by
arrival only within one depth. Depth is 1 more than the deepest event that an event refers to, and an event can only refer to
what has arrived. So

- an event that is alone at its depth arrived before every deeper one: each of them descends from it;
- of several events at one depth the first arrived before all deeper ones, for the same reason; the others may have arrived
  later than some of those. Their numbers must be asked for.

Events at depths that were reached before count as not alone: what they share it with was read earlier. They are as few as
there were writers at once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

Position = Callable[[str], Awaitable[int]]
"""Number of an event in the room's order of arrival, by its id."""


@dataclass(frozen=True, slots=True)
class Event:
    """An event of the room."""

    id: str
    depth: int
    sender: str
    type: str
    state_key: str | None
    content: Mapping[str, Any] = field(repr=False)
    redacted: bool = False


async def in_arrival_order(
    page: Sequence[Event], *, deepest: int, complete: bool, position: Position
) -> list[Event]:
    """The events of a page that are next in order of arrival, in that order.

    `page` is what arrived after some position, sorted by depth and then arrival; `deepest` the greatest depth of anything up to
    that position; `complete`: there is nothing deeper. If not, the page's last depth is left out, as more may be there. An
    empty result means that a longer page is needed.
    """
    depths = [list(events) for _, events in groupby(page, key=lambda event: event.depth)]
    rest = [] if complete or not depths else depths.pop()
    if rest and rest[0].depth <= deepest:
        return []  # what is deeper and not in the page may have arrived before all of it
    flat = [event for events in depths for event in events]
    following = [events[0] for events in depths[1:]] + rest[:1]
    for events, first in zip(depths, following, strict=False):
        alone = len(events) == 1 and events[0].depth > deepest
        if not alone and await position(events[-1].id) > await position(first.id):
            break
    else:
        return flat
    numbers = {event.id: await position(event.id) for event in flat}
    bound = await position(rest[0].id) if rest else None
    known = [event for event in flat if bound is None or numbers[event.id] < bound]
    return sorted(known, key=lambda event: numbers[event.id])
