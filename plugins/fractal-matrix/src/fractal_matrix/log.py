"""One group's log in a Matrix room: reading without gaps, in order of arrival, and appending once.

A cursor names the last event that was taken: its number in the room's order of arrival, the greatest depth up to there, and its
id. The number makes `/messages` return whatever arrived later, on one Synapse without a gap: it commits a room's
events one after the other, in the order of their numbers. The order within a page is restored by `ordering`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fractal.api.coordination import MAX_ENTRY, Page
from fractal.api.errors import BackendError, Denied, InvalidInput, NotFound
from fractal_matrix.accounts import plain_dict
from fractal_matrix.names import LOG, VERSION, pack, text_of, unpack
from fractal_matrix.ordering import Event, in_arrival_order
from fractal_matrix.outgoing import Attempt, Outgoing
from fractal_matrix.session import Session, translated
from fractal_matrix.wire import Refused

PAGE, LONGEST_PAGE = 100, 1000
"""Events of one request; more only when a page cannot be ordered by itself. Synapse gives 1,000 at most."""
AHEAD = 10
"""Events that are read beyond those wanted, so that their order can be told."""
BUDGET = 1.5
"""Seconds after which a read returns what it has, so that a long history does not run into its caller's time-out."""
REMEMBERED_MS = 12 * 3600 * 1000
"""A transaction id is trusted for so long: half of what Synapse keeps it."""
POSITIONS = 5000
_CURSOR = re.compile(r"([0-9]{1,18})\.([0-9]{1,18})\.(\$[A-Za-z0-9_\-:./+]{1,250})?")
_TOKEN = re.compile(r"[st](?:[0-9]{1,18}-)?([0-9]{1,18})(?:_.*)?")


@dataclass(frozen=True, slots=True)
class Place:
    """Up to where the log was read."""

    number: int = 0
    deepest: int = 0
    event: str = ""

    @property
    def cursor(self) -> str:
        """For the caller to keep."""
        return f"{self.number}.{self.deepest}.{self.event}"


def parse_cursor(text: str | None) -> Place:
    """The inverse; the beginning for None. Raises InvalidInput."""
    if text is None:
        return Place()
    found = _CURSOR.fullmatch(text)
    if found is None or (found[3] is None) != (int(found[1]) == 0):
        raise InvalidInput(f"{text[:40]!r} is not a cursor of the matrix coordination backend")
    return Place(int(found[1]), int(found[2]), found[3] or "")


class RoomLog:
    """The log in one room, as one account."""

    def __init__(self, session: Session, room: str, outgoing: Outgoing) -> None:
        self._session = session
        self._room = room
        self._outgoing = outgoing
        self._positions: dict[str, int] = {}
        self._checked: set[str] = set()
        """Events of cursors that were found in the room."""
        self._sees = False
        """Whether it was made sure that nobody's events are kept from this account."""
        self._latest = ""
        """Cursor of the last read."""

    # --- reading -----------------------------------------------------------------------------------------------------

    async def read(self, after: str | None, *, limit: int, wait: float) -> Page:
        """As `Coordinator.read`. An empty page is the answer of the request made at once, unless something woke us."""
        clock, listener = self._session.context.clock, self._session.listener
        place = parse_cursor(after)
        end = clock.boottime() + wait
        while True:
            mark = listener.mark(self._room)
            page = await self._page(place, limit)
            left = end - clock.boottime()
            if page.entries or not page.head or left <= 0:
                return page
            place = parse_cursor(page.cursor)
            if not await listener.news(self._room, mark, left):
                return page

    async def _page(self, place: Place, limit: int) -> Page:
        clock = self._session.context.clock
        begun, until = place, clock.boottime() + BUDGET
        await self._check(place)
        await self._require_sight()
        entries: list[bytes] = []
        head = False
        while len(entries) < limit:
            if place != begun and clock.boottime() > until:
                break
            events = await self._next(place, limit - len(entries))
            if not events:
                head = True
                break
            for event in events:
                entry = entry_of(event)
                if entry is not None:
                    entries.append(entry)
                elif event.type == LOG:
                    self._report(event)
                place = replace(place, deepest=max(place.deepest, event.depth), event=event.id)
                if len(entries) == limit:
                    break
            place = replace(place, number=await self._position(place.event))
            self._checked = {place.event}
        self._latest = place.cursor
        return Page(tuple(entries), place.cursor, head=head)

    async def _check(self, place: Place) -> None:
        """A server that was put back from an older copy gives numbers out a second time."""
        if not place.event or place.event in self._checked:
            return
        try:
            found = await self._position(place.event, fresh=True)
        except NotFound:
            found = -1
        if found != place.number:
            raise BackendError(
                f"room {self._room} on {self._session.account.url} no longer holds event {place.event} that this device has"
                " read: the homeserver was put back from an older copy, or the room's history was deleted"
            )
        self._checked.add(place.event)

    async def _require_sight(self) -> None:
        """A person may ignore others, whose events the homeserver then leaves out of the log too."""
        if self._sees or self._session.account.password:
            return
        for user in sorted(await self._session.ignored()):
            if await self._session.membership(self._room, user):
                raise BackendError(
                    f"{self._session.account.user} ignores {user}, so that this device cannot read the whole log of room"
                    f" {self._room}: end that in a Matrix client"
                )
        self._sees = True

    async def _next(self, place: Place, wanted: int) -> list[Event]:
        """The next events in order of arrival, none at the head. Raises NotFound for somebody who was put out."""
        size = min(PAGE, wanted + AHEAD)
        while True:
            page, last = await self._messages(f"s{place.number}", size)
            if not page and last is None:
                return []
            if page and last is not None:
                self._remember(page[-1].id, last)
            complete = len(page) < size
            ordered = await in_arrival_order(
                page, deepest=place.deepest, complete=complete, position=self._position
            )
            if ordered:
                return await self._while_inside(ordered)
            if complete:
                # Only what we may not see is there.
                await self._require_inside()
                raise BackendError(f"room {self._room} hides events from {self._session.account.user}")
            if size >= LONGEST_PAGE:
                raise BackendError(f"room {self._room} has too many events at one depth to be ordered")
            size = min(4 * size, LONGEST_PAGE)

    async def _while_inside(self, events: list[Event]) -> list[Event]:
        """Those up to where this account was put out, unless it is in again. Raises NotFound if there are none."""
        me = self._session.account.user
        for at, event in enumerate(events):
            if event.type != "m.room.member" or event.state_key != me:
                continue
            if text_of(event.content, "membership") in ("leave", "ban"):
                if at:
                    return events[:at]
                await self._require_inside()
        return events

    async def _require_inside(self) -> None:
        session = self._session
        if await session.membership(self._room, session.account.user) != "join":
            raise self._outside()

    def _outside(self) -> NotFound:
        account = self._session.account
        return NotFound(
            f"{account.user} is not in room {self._room} on {account.url}: it was put out, or never invited"
        )

    async def _messages(self, start: str, size: int) -> tuple[list[Event], int | None]:
        """A page by depth, and the number of its last event; None at the end."""
        query = {
            "dir": "f",
            "from": start,
            "limit": str(size),
            # Only this format tells depths.
            "filter": json.dumps({"event_format": "federation"}),
        }
        try:
            said = await self._session.call("GET", ["rooms", self._room, "messages"], query=query)
        except Refused as error:
            if error.status in (403, 404):
                raise self._outside() from error
            raise
        chunk = said.get("chunk")
        if not isinstance(chunk, list) or len(chunk) > size:
            raise self._strange("a page that is none")
        end = said.get("end")
        return [self._event(plain_dict(raw)) for raw in chunk], None if end is None else self._number(end)

    def _event(self, raw: Mapping[str, Any]) -> Event:
        name, depth = text_of(raw, "event_id"), raw.get("depth")
        if not name or not isinstance(depth, int) or depth < 0:
            raise self._strange("an event without id or depth")
        key = raw.get("state_key")
        return Event(
            id=name,
            depth=depth,
            sender=text_of(raw, "sender"),
            type=text_of(raw, "type"),
            state_key=key if isinstance(key, str) else None,
            content=plain_dict(raw.get("content")),
            redacted="redacted_because" in plain_dict(raw.get("unsigned")),
        )

    def _number(self, token: object) -> int:
        found = _TOKEN.fullmatch(token) if isinstance(token, str) else None
        if found is None:
            raise self._strange(f"a position {str(token)[:40]!r}")
        return int(found[1])

    def _strange(self, what: str) -> BackendError:
        return BackendError(
            f"{self._session.account.url} answers with {what}, not as Synapse does: only Synapse can hold a log"
        )

    async def _position(self, event: str, *, fresh: bool = False) -> int:
        """Number of an event in order of arrival. Raises NotFound."""
        known = None if fresh else self._positions.get(event)
        if known is not None:
            return known
        path = ["rooms", self._room, "context", event]
        try:
            said = await self._session.call("GET", path, query={"limit": "0"})
        except Refused as error:
            if error.status == 404:
                raise NotFound(f"room {self._room} has no event {event}") from error
            if error.status == 403:
                raise self._outside() from error
            raise
        number = self._number(said.get("end"))
        self._remember(event, number)
        return number

    def _remember(self, event: str, number: int) -> None:
        if len(self._positions) >= POSITIONS:
            self._positions.clear()
        self._positions[event] = number

    def _report(self, event: Event) -> None:
        what = "was redacted" if event.redacted else "is no entry"
        self._session.context.logger.warning(
            "room %s: event %s of %s %s and is passed over", self._room, event.id, event.sender, what
        )

    def doubt(self) -> None:
        """The connection was lost: look again whether the server is the one that it was."""
        self._checked.clear()
        self._sees = False

    # --- writing -----------------------------------------------------------------------------------------------------

    async def append(self, token: str, entry: bytes) -> None:
        """As `Coordinator.append`."""
        session, room, workers = self._session, self._room, self._session.context.workers
        now = session.context.clock.wall_ms()
        login = f"{session.account.user} {session.account.device}"
        first = await workers.run(
            self._outgoing.begin, room, token, Attempt(login, now, self._latest, done=False)
        )
        if first.done:
            return
        old = first.login != login or not 0 <= now - first.began_ms < REMEMBERED_MS
        if not (old and await self._is_there(first, token)):
            await self._send(token, entry)
        await workers.run(self._outgoing.done, room, token)

    async def _send(self, token: str, entry: bytes) -> None:
        content = {"v": VERSION, "token": token, "entry": pack(entry)}
        try:
            await self._session.call(
                "PUT", ["rooms", self._room, "send", LOG, token], body=content, write=True
            )
        except Refused as error:
            if error.status == 404:
                raise self._outside() from error
            if error.status == 403:
                raise Denied(f"{self._session.account.user} may not write into the log: {error}") from error
            raise translated(error) from error

    async def _is_there(self, first: Attempt, token: str) -> bool:
        """Whether the log holds what an earlier attempt sent."""
        place = parse_cursor(first.after or None)
        user = first.login.partition(" ")[0]
        while events := await self._next(place, PAGE):
            for event in events:
                if event.type == LOG and event.sender == user and event.content.get("token") == token:
                    return True
            deepest = max(place.deepest, *(event.depth for event in events))
            last = events[-1].id
            place = Place(await self._position(last), deepest, last)
        return False


def entry_of(event: Event) -> bytes | None:
    """The entry in an event; None for every other event, whoever sent it."""
    if event.type != LOG or event.state_key is not None or event.content.get("v") != VERSION:
        return None
    entry = unpack(event.content.get("entry"), MAX_ENTRY)
    return entry or None
