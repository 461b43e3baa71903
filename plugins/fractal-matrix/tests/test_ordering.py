"""Order of arrival, restored from pages by depth: rooms in which events take any time to arrive, and readers that read meanwhile.

The room here behaves as Synapse does (a test below and those on a real one compare): a real homeserver seldom lets an event arrive
after deeper ones, so its part is played.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from fractal_matrix.accounts import Account
from fractal_matrix.log import RoomLog, parse_cursor
from fractal_matrix.names import LOG, pack
from fractal_matrix.ordering import Event, in_arrival_order
from fractal_matrix.outgoing import Outgoing
from fractal_matrix.wire import Refused
from hypothesis import given, settings
from hypothesis import strategies as st

from fractal.api.errors import BackendError, InvalidInput
from fractal.testing.context import real_context

ME = "@me:hs.test"
ROOM = "!room"


class Room:
    """Events by number of arrival; each refers to what had arrived when it was begun."""

    def __init__(self) -> None:
        self.events: list[tuple[int, str]] = []
        """(depth, id), in order of arrival: the first has number 1."""
        self.leaves: dict[str, int] = {}
        """Events that none refers to yet, with their depths."""
        self.begun: dict[str, tuple[int, frozenset[str]]] = {}
        self.asked = 0

    def begin(self, name: str) -> None:
        self.begun[name] = (1 + max(self.leaves.values(), default=0), frozenset(self.leaves))

    def arrive(self, name: str) -> None:
        depth, before = self.begun.pop(name)
        self.leaves = {leaf: d for leaf, d in self.leaves.items() if leaf not in before} | {name: depth}
        self.events.append((depth, name))

    def number(self, name: str) -> int:
        return next(at for at, (_, event) in enumerate(self.events, 1) if event == name)

    # --- what `Session` offers ---

    async def call(
        self, method: str, path: Sequence[str], *, query: Mapping[str, str], **more: object
    ) -> dict[str, Any]:
        await asyncio.sleep(0)
        if path[2] == "context":
            self.asked += 1
            if not any(event == path[3] for _, event in self.events):
                raise Refused("no such event", status=404, errcode="M_NOT_FOUND", body={})
            return {"end": f"t1-{self.number(path[3])}_0_0"}
        since, limit = int(query["from"].removeprefix("s")), int(query["limit"])
        later = sorted((depth, at, name) for at, (depth, name) in enumerate(self.events, 1) if at > since)
        if not later:
            return {"chunk": []}
        page = later[:limit]
        deepest, last, _ = page[-1]
        return {"chunk": [event(name, depth) for depth, _, name in page], "end": f"t{deepest}-{last}_0_0"}


def event(name: str, depth: int) -> dict[str, Any]:
    content: dict[str, Any] = {"v": 1, "token": name, "entry": pack(name.encode())}
    return {"event_id": name, "depth": depth, "type": LOG, "sender": ME, "content": content}


class Quiet:
    """A listener that hears nothing."""

    def mark(self, room: str) -> int:
        return 0

    async def news(self, room: str, mark: int, seconds: float) -> bool:
        return False


class Played:
    """A session in that room."""

    def __init__(self, room: Room, context: object) -> None:
        self.account = Account(url="https://hs.test", user=ME, device="D", token="t", password="own")
        self.call = room.call
        self.listener = Quiet()
        self.context = context


@st.composite
def steps(draw: st.DrawFn) -> list[tuple[str, int]]:
    """Begin, arrive and read, in any order; up to 12 events are in the making at once."""
    return draw(
        st.lists(
            st.tuples(
                st.sampled_from(("begin", "begin", "begin", "arrive", "arrive", "arrive", "read")),
                st.integers(0, 11),
            ),
            min_size=15,
            max_size=80,
        )
    )


async def play(folder: Path, plan: list[tuple[str, int]], limit: int) -> tuple[Room, list[str]]:
    """The room that the plan leads to, and what a reader saw who read on whenever the plan says so."""
    room, made, seen = Room(), 0, list[str]()
    cursor: str | None = None
    async with real_context(folder) as context:
        log = RoomLog(Played(room, context), ROOM, Outgoing(context.state_dir))  # type: ignore[arg-type]
        for what, which in [*plan, *[("arrive", 0)] * 120, ("read", 0)]:
            if what == "begin" and len(room.begun) < 12:
                room.begin(f"${made}")
                made += 1
            elif what == "arrive" and room.begun:
                room.arrive(list(room.begun)[which % len(room.begun)])
            elif what == "read":
                while True:
                    page = await log.read(cursor, limit=limit, wait=0)
                    assert len(page.entries) <= limit
                    seen += [entry.decode() for entry in page.entries]
                    cursor = page.cursor
                    if page.head:
                        break
    return room, seen


@settings(max_examples=60, deadline=None)
@given(plan=steps(), limit=st.sampled_from((1, 2, 3, 7, 100)))
def test_every_reader_sees_the_order_of_arrival(
    plan: list[tuple[str, int]], limit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever the graph, whenever it is read and however large the pages: nothing is missed, doubled or moved."""
    room, seen = asyncio.run(play(tmp_path_factory.mktemp("played"), plan, limit))
    assert seen == [name for _, name in room.events]


def test_the_played_room_has_what_is_feared(tmp_path: Path) -> None:
    """An event that arrives after deeper ones, which a reader by depth would never see."""
    plan = [
        ("begin", 0),
        ("begin", 0),
        ("arrive", 1),
        ("begin", 0),
        ("arrive", 1),
        ("arrive", 0),
        ("read", 0),
    ]
    room, seen = asyncio.run(play(tmp_path, plan, 10))
    depths = [depth for depth, _ in room.events]
    assert depths != sorted(depths)
    assert seen == [name for _, name in room.events]


def test_a_log_written_by_one_at_a_time_costs_no_questions(tmp_path: Path) -> None:
    """Only one for each place where a page was cut."""
    plan = [("begin", 0), ("arrive", 0)] * 60
    room, seen = asyncio.run(play(tmp_path, plan, 500))
    assert len(seen) == 60
    assert room.asked == 0


async def test_a_server_put_back_from_a_copy_is_found_out(tmp_path: Path) -> None:
    """It gives numbers out again, so what is new would be taken for known."""
    room = Room()
    async with real_context(tmp_path) as context:
        log = RoomLog(Played(room, context), ROOM, Outgoing(context.state_dir))  # type: ignore[arg-type]
        for name in ("$a", "$b"):
            room.begin(name)
            room.arrive(name)
        cursor = (await log.read(None, limit=9, wait=0)).cursor
        room.events.pop()
        for name in ("$c", "$d"):
            room.begin(name)
            room.arrive(name)
        log.doubt()
        with pytest.raises(BackendError, match="put back from an older copy"):
            await log.read(cursor, limit=9, wait=0)


@pytest.mark.parametrize(
    "text", ["", "1", "1.2", "1.2.", "0.0.$a", "1.2.x", "-1.0.", "1.2.$a\n", "99999999999999999999.1.$a"]
)
def test_other_cursors_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_cursor(text)


async def test_late_events_that_fill_a_page_wait_for_a_longer_one() -> None:
    """What is deeper and not in the page may have arrived before them."""
    late = [Event(id=f"${n}", depth=3, sender=ME, type=LOG, state_key=None, content={}) for n in range(4)]

    async def position(name: str) -> int:
        return 10 + int(name[1:])

    assert await in_arrival_order(late, deepest=5, complete=False, position=position) == []
    assert await in_arrival_order(late, deepest=5, complete=True, position=position) == late
