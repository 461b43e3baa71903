"""Signals: one request for all, none to those long silent, nothing left on the homeserver or in the room."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import pytest
from fractal_matrix import signalling
from fractal_matrix.address import parse_address
from fractal_matrix.coordinator import MatrixCoordinator
from fractal_matrix.names import SIGNAL, pack
from fractal_matrix.testing import Devices

from fractal.api.coordination import MAX_SIGNAL
from fractal.shell.clock import SystemClock

NAMES = ("a" * 20, "b" * 20, "c" * 20)
PATIENCE = 60.0


class Ahead(SystemClock):
    """The real clock, with time that has passed in between."""

    by = 0.0

    def boottime(self) -> float:
        return super().boottime() + self.by


class Three:
    """Three devices in a group, each running."""

    def __init__(self, devices: Devices, address: str, logs: list[MatrixCoordinator]) -> None:
        self.devices = devices
        self.address = address
        self.logs = logs
        self.room = parse_address(address).room
        self.sent: list[dict[str, Any]] = []

    def ahead(self, log: MatrixCoordinator) -> Ahead:
        """From now on, that device's clock for what it hears and what it is silent to."""
        clock = Ahead()
        for session in log._sessions.values():
            session.context = session.listener._context = replace(session.context, clock=clock)
        return clock

    def watch(self, log: MatrixCoordinator) -> None:
        """Note every request by which that device sends signals."""
        for session in log._sessions.values():
            call = session.call

            async def noted(method: str, path: Any, *, _call: Any = call, **more: Any) -> Any:
                if path[0] == "sendToDevice":
                    self.sent.append(more["body"]["messages"])
                return await _call(method, path, **more)

            session.call = noted  # type: ignore[method-assign]

    async def hear(self, log: MatrixCoordinator, sender: str) -> bytes:
        """The next signal of that device."""
        async with asyncio.timeout(PATIENCE):
            while True:
                for one in await log.signals(self.address):
                    if one.sender == sender:
                        return one.payload
                await asyncio.sleep(0.1)


@pytest.fixture
async def three(devices: Devices, anna: str) -> AsyncIterator[Three]:
    devices.log_in(NAMES[0], user=anna)
    async with AsyncExitStack() as stack:
        logs = [await stack.enter_async_context(devices.open(name)) for name in NAMES]
        address = await logs[0].create(f"signals-{devices.folder.parent.name}"[:128], "")
        for log in logs[1:]:
            await log.join(await logs[0].invite(address, ""))
        for log in logs:
            await log.signals(address)
        yield Three(devices, address, logs)


async def test_one_request_carries_a_beat_to_all_and_leaves_nothing(three: Three) -> None:
    """Neither events in the room nor, once they have arrived, messages in the homeserver's database."""
    first, *others = three.logs
    three.watch(first)
    events = _count(three, "SELECT count(*) FROM events WHERE room_id = ?", three.room)
    for number in range(5):
        await first.signal(three.address, b"beat %d" % number)
    assert [len(messages) for messages in three.sent] == [2] * 5
    for log in others:
        while await three.hear(log, NAMES[0]) != b"beat 4":
            pass
    assert _count(three, "SELECT count(*) FROM events WHERE room_id = ?", three.room) == events
    users = {user for messages in three.sent for user in messages}
    async with asyncio.timeout(PATIENCE):
        while sum(
            _count(three, "SELECT count(*) FROM device_inbox WHERE user_id = ?", user) for user in users
        ):
            await asyncio.sleep(0.2)


async def test_a_silent_device_is_signalled_no_more_until_it_is_back(three: Three) -> None:
    """Who was silent for long gets nothing; its first sign brings it back; an outage of our own counts all anew."""
    first, second, third = three.logs
    clock = three.ahead(first)
    three.watch(first)
    accounts = [three.devices.accounts(name).known().rooms[three.room].user for name in NAMES]

    async def told() -> set[str]:
        """Who gets the next signal of the first device."""
        before = len(three.sent)
        await first.signal(three.address, b"hello")
        return {user for messages in three.sent[before:] for user in messages}

    assert await told() == {accounts[1], accounts[2]}
    clock.by += signalling.SILENT
    assert await told() == set()
    await second.signal(three.address, b"here")
    assert await three.hear(first, NAMES[1]) == b"here"
    assert await told() == {accounts[1]}
    await third.signal(three.address, b"back again")
    assert await three.hear(first, NAMES[2]) == b"back again"
    assert await told() == {accounts[1], accounts[2]}
    clock.by += signalling.SILENT
    assert await told() == set()
    for session in first._sessions.values():
        session.listener.missed()
    assert await told() == {accounts[1], accounts[2]}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda c: {**c, "device": NAMES[2]},
        lambda c: {**c, "device": "d" * 20},
        lambda c: {**c, "room": "!elsewhere"},
        lambda c: {**c, "data": c["data"] + "x y"},
        lambda c: {**c, "data": pack(bytes(MAX_SIGNAL + 1))},
        lambda c: {**c, "data": 7},
        lambda c: {**c, "to": ["list"]},
        lambda c: {},
        lambda c: {"room": c["room"], "device": {"deep": []}},
    ],
)
async def test_a_signal_that_is_none_is_dropped(
    three: Three, spoil: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    """Junk, and what names a device that its sender is not."""
    sender = three.devices.accounts(NAMES[1]).known().rooms[three.room]
    target = three.devices.accounts(NAMES[0]).known().rooms[three.room]
    sound = {"v": 1, "room": three.room, "device": NAMES[1], "to": None, "data": pack(b"sound")}
    path = f"/_matrix/client/v3/sendToDevice/{quote(SIGNAL)}/"
    first = three.logs[0]
    for number, content in enumerate((spoil(sound), sound)):
        body = {"messages": {target.user: {target.device: content}}}
        three.devices.server.call("PUT", f"{path}{number}-{len(json.dumps(content))}", body, sender.token)
    heard: list[tuple[str, bytes]] = []
    async with asyncio.timeout(PATIENCE):
        while not heard:
            heard = [(s.sender, s.payload) for s in await first.signals(three.address)]
            await asyncio.sleep(0.1)
    assert heard == [(NAMES[1], b"sound")]


def _count(three: Three, query: str, key: str) -> int:
    with sqlite3.connect(f"file:{three.devices.server.database}?mode=ro", uri=True) as file:
        return int(file.execute(query, (key,)).fetchone()[0])
