"""An account's long poll (`/sync`): it wakes those who wait for a log to grow and brings signals; no entry is taken from it.

Its timelines have gaps and its first answer another order, so logs are read from `/messages` (`reading`). Asking on from an
answer tells the homeserver that its to-device messages have arrived, upon which it forgets them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fractal.api.context import Context
from fractal.api.errors import BackendError, FractalError
from fractal_matrix.accounts import plain_dict
from fractal_matrix.names import CONTACT, LOG, SIGNAL, text_of
from fractal_matrix.wire import Busy

POLL = 10.0
"""Seconds that the homeserver may hold a poll: a connection that died unseen costs signals for no longer."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 20.0
"""Seconds before a poll that failed is repeated."""
GAP = 3 * POLL
"""Seconds between two polls beyond which this device was asleep."""
NOTHING = {"not_types": ["*"]}

Call = Callable[..., Awaitable[dict[str, Any]]]
Receive = Callable[[Mapping[str, Any]], None]


class Listener:
    """Polls once somebody watches a room."""

    def __init__(self, context: Context, call: Call) -> None:
        self._context = context
        self._call = call
        self._rooms: dict[str, Receive] = {}
        self._marks: dict[str, int] = {}
        self._bells: dict[str, asyncio.Event] = {}
        self._task: asyncio.Task[None] | None = None
        self._asked = asyncio.Event()
        self._since = ""
        self._problem = ""
        self.changed: set[str] = set()
        """Rooms whose members or contacts changed."""
        self.interrupted = context.clock.boottime()
        """Boot time until which silence means nothing, as we could not hear."""

    def watch(self, room: str, receive: Receive) -> None:
        """From now on, wake those who wait for that room and hand its to-device messages over."""
        if room not in self._rooms:
            self._rooms[room] = receive
            self._asked.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._poll_on())

    def forget(self, room: str) -> None:
        """Watch that room no more."""
        if self._rooms.pop(room, None) is not None:
            self._asked.set()

    def mark(self, room: str) -> int:
        """Changes whenever something happened in the room."""
        return self._marks.get(room, 0)

    async def news(self, room: str, mark: int, seconds: float) -> bool:
        """Wait until the mark is another one; False if it is not after so many seconds."""
        try:
            async with asyncio.timeout(seconds):
                while self.mark(room) == mark:
                    await self._bells.setdefault(room, asyncio.Event()).wait()
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """End the poll."""
        if self._task is not None:
            await _end(self._task)
            self._task = None

    def missed(self) -> None:
        """Something of ours failed: count everybody's silence anew."""
        self.interrupted = self._context.clock.boottime()

    async def _poll_on(self) -> None:
        clock, entropy = self._context.clock, self._context.entropy
        pause = FIRST_PAUSE
        while True:
            began = clock.boottime()
            self._asked.clear()
            try:
                body = await self._poll()
                if body is not None:
                    self._take(body)
                self._report("")
                pause = FIRST_PAUSE
            except FractalError as error:
                self._report(str(error))
                self.missed()
                wait = max(pause, min(error.wait, LONGEST_PAUSE) if isinstance(error, Busy) else 0.0)
                await clock.sleep(wait * entropy.uniform(0.75, 1.25))
                pause = min(2 * pause, LONGEST_PAUSE)
            if clock.boottime() - began > GAP:
                self.missed()

    async def _poll(self) -> dict[str, Any] | None:
        """One answer; None if the rooms to watch changed meanwhile."""
        query = {"filter": _filter(sorted(self._rooms)), "set_presence": "offline"}
        hold = 0.0
        if self._since:
            hold = POLL
            query |= {"since": self._since, "timeout": str(int(1000 * hold))}
        request = asyncio.ensure_future(self._call("GET", ["sync"], query=query, wait=hold))
        asked = asyncio.ensure_future(self._asked.wait())
        try:
            await asyncio.wait({request, asked}, return_when=asyncio.FIRST_COMPLETED)
            return request.result() if request.done() else None
        finally:
            await _end(request, asked)

    def _take(self, body: Mapping[str, Any]) -> None:
        since = body.get("next_batch")
        if not isinstance(since, str) or not since or len(since) > 4096:
            raise BackendError("the homeserver's sync has no next_batch: is this Synapse?")
        rooms = plain_dict(body.get("rooms"))
        for room in plain_dict(rooms.get("leave")):
            self._ring(room)
        for room, news in plain_dict(rooms.get("join")).items():
            timeline = plain_dict(plain_dict(news).get("timeline"))
            events = timeline.get("events")
            if not (events or timeline.get("limited")):
                continue
            known = events if isinstance(events, list) else []
            kinds = {text_of(plain_dict(event), "type") for event in known}
            if timeline.get("limited") or kinds - {LOG}:
                self.changed.add(room)
            self._ring(room)
        messages = plain_dict(body.get("to_device")).get("events")
        for message in messages if isinstance(messages, list) else []:
            self._receive(plain_dict(message))
        self._since = since

    def _receive(self, message: Mapping[str, Any]) -> None:
        content = plain_dict(message.get("content"))
        room = content.get("room")
        if message.get("type") != SIGNAL or not isinstance(room, str):
            return
        receive = self._rooms.get(room)
        if receive is not None:
            receive(message)

    def _ring(self, room: str) -> None:
        if room in self._rooms:
            self._marks[room] = self.mark(room) + 1
            bell = self._bells.pop(room, None)
            if bell is not None:
                bell.set()

    def _report(self, problem: str) -> None:
        if problem != self._problem:
            self._context.logger.info("matrix: %s", problem or "listening again")
        self._problem = problem


async def _end(*tasks: asyncio.Future[Any]) -> None:
    """Cancel and wait, without taking a cancellation of our own for theirs."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # seen, or of no interest any more


def _filter(rooms: list[str]) -> str:
    """Nothing but what wakes somebody: an account may be in many other rooms."""
    return json.dumps(
        {
            "presence": NOTHING,
            "account_data": NOTHING,
            "room": {
                "rooms": rooms,
                "account_data": NOTHING,
                "ephemeral": NOTHING,
                "state": NOTHING,
                "timeline": {"limit": 10, "types": [LOG, CONTACT, "m.room.member"]},
            },
        },
        separators=(",", ":"),
    )
