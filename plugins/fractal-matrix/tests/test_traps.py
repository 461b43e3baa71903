"""What a real Synapse does to a log, and what people in its room may try."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import urllib.error
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from fractal_matrix.accounts import with_login, with_room
from fractal_matrix.address import parse_address
from fractal_matrix.coordinator import MatrixCoordinator
from fractal_matrix.log import REMEMBERED_MS
from fractal_matrix.names import CONTACT, LOG, pack
from fractal_matrix.outgoing import FILE
from fractal_matrix.testing import Devices, Synapse, synapse

from fractal.api.coordination import MAX_ENTRY
from fractal.api.errors import Ambiguous, BackendError, Denied, NotFound

ATTIC, KITCHEN, SHED = "a" * 20, "b" * 20, "c" * 20
PATIENCE = 60.0


class Group:
    """A log with two devices on it: the founder's attic, and the kitchen with an account of its own."""

    def __init__(
        self, devices: Devices, address: str, attic: MatrixCoordinator, kitchen: MatrixCoordinator
    ) -> None:
        self.devices = devices
        self.address = address
        self.attic = attic
        self.kitchen = kitchen
        self.room = parse_address(address).room

    async def everything(self, log: MatrixCoordinator, *, expect: int = 0) -> list[bytes]:
        """The log from its beginning."""
        found: list[bytes] = []
        cursor: str | None = None
        async with asyncio.timeout(PATIENCE):
            while True:
                page = await log.read(self.address, cursor)
                found += page.entries
                cursor = page.cursor
                if page.head and len(found) >= expect:
                    return found

    def token(self, device: str) -> str:
        """Access token of that device's account in the log's room."""
        known = self.devices.accounts(device).known()
        return known.rooms[self.room].token

    def user(self, device: str) -> str:
        """That account."""
        return self.devices.accounts(device).known().rooms[self.room].user

    def owner(self) -> str:
        """Access token of the member who made the log."""
        known = self.devices.accounts(ATTIC).known()
        return known.logins[known.home].token

    def post(self, token: str, path: str, body: dict[str, Any], method: str = "PUT") -> Any:
        """A request that no device of ours would make."""
        room = quote(self.room, safe="")
        return self.devices.server.call(method, f"/_matrix/client/v3/rooms/{room}/{path}", body, token)


@asynccontextmanager
async def founded(devices: Devices, user: str = "") -> AsyncIterator[Group]:
    """A group on that homeserver."""
    devices.log_in(ATTIC, user=user)
    async with AsyncExitStack() as stack:
        attic, kitchen = [await stack.enter_async_context(devices.open(d)) for d in (ATTIC, KITCHEN)]
        address = await attic.create(f"group-{devices.folder.parent.name}"[:128], "unsaid")
        await kitchen.join(await attic.invite(address, ""))
        yield Group(devices, address, attic, kitchen)


@pytest.fixture
async def group(devices: Devices, anna: str) -> AsyncIterator[Group]:
    """On the homeserver that all share."""
    async with founded(devices, anna) as made:
        yield made


# --- reading -------------------------------------------------------------------------------------------------------------


async def test_racing_writers_are_seen_in_one_order(group: Group) -> None:
    """By who follows, who wakes and who replays; `/sync` shows at most 100 of such a flood, and nobody misses the rest."""
    count = 150
    seen: list[bytes] = []

    async def follow() -> None:
        cursor: str | None = None
        while len(seen) < 2 * count:
            page = await group.kitchen.read(group.address, cursor, limit=40, wait=2.0)
            seen.extend(page.entries)
            cursor = page.cursor

    async def write(log: MatrixCoordinator, name: str) -> None:
        for first in range(0, count, 10):
            batch = [
                log.append(group.address, f"{name}{n}", f"{name} {n}".encode())
                for n in range(first, first + 10)
            ]
            await asyncio.gather(*batch)

    async with asyncio.timeout(2 * PATIENCE):
        await asyncio.gather(follow(), write(group.attic, "a"), write(group.kitchen, "k"))
    replayed = await group.everything(group.attic, expect=2 * count)
    assert seen == replayed
    assert len(set(seen)) == 2 * count


async def test_order_is_that_of_arrival_by_the_servers_own_numbers(group: Group) -> None:
    """Compared with its database."""
    await asyncio.gather(*[group.attic.append(group.address, f"t{n}", b"%d" % n) for n in range(40)])
    entries = await group.everything(group.kitchen, expect=40)
    with sqlite3.connect(f"file:{group.devices.server.database}?mode=ro", uri=True) as file:
        rows = file.execute(
            "SELECT json FROM events JOIN event_json USING (event_id) WHERE events.room_id = ? AND type = ? ORDER BY stream_ordering",
            (group.room, LOG),
        ).fetchall()
    assert [json.loads(row[0])["content"]["entry"] for row in rows] == [pack(entry) for entry in entries]


async def test_the_largest_entry_fits(group: Group) -> None:
    """As base 85; in base 64 it would not."""
    entry = bytes(range(256)) * (MAX_ENTRY // 256)
    await group.attic.append(group.address, "t", entry)
    assert await group.everything(group.kitchen, expect=1) == [entry]


async def test_what_others_put_into_the_room_is_passed_over(group: Group) -> None:
    """Junk of our type, edits, state, and what the powers forbid: entries around it stay what they are, for all alike."""
    await group.attic.append(group.address, "t1", b"before")
    stranger = group.token(KITCHEN)
    junk: list[dict[str, Any]] = [
        {},
        {"v": 1},
        {"v": 2, "token": "x", "entry": pack(b"other version")},
        {"v": 1, "token": "x", "entry": pack(b"x") + " "},
        {"v": 1, "token": "x", "entry": ""},
        {"v": 1, "token": "x", "entry": ["list"]},
        {"v": 1, "token": "x", "entry": "é" * 100},
        {"v": 1, "token": "x", "entry": pack(bytes(MAX_ENTRY + 1))},
        {"v": True, "token": 7, "entry": {"deep": [[[[]]]]}},
        {"m.relates_to": {"rel_type": "m.thread"}, "m.new_content": {"v": 1}},
    ]
    for number, content in enumerate(junk):
        group.post(stranger, f"send/{LOG}/junk{number}", content)
    for path in ("send/m.room.message/x", "state/m.room.topic", "state/m.room.power_levels"):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            group.post(stranger, path, {"body": "x", "msgtype": "m.text", "topic": "x"})
    with pytest.raises(urllib.error.HTTPError, match="403"):
        group.post(stranger, f"state/{CONTACT}/{quote(group.user(ATTIC))}", {"devices": {KITCHEN: "X"}})
    group.post(stranger, f"state/{LOG}", {"v": 1, "token": "s", "entry": pack(b"state is no entry")})
    await group.attic.append(group.address, "t2", b"after")
    for log in (group.attic, group.kitchen):
        assert await group.everything(log, expect=2) == [b"before", b"after"]


async def test_an_edit_changes_nothing(group: Group) -> None:
    """An event that says it replaces another is one more entry, if it is one, and the other stays."""
    await group.attic.append(group.address, "t1", b"first")
    room = quote(group.room, safe="")
    token = group.token(KITCHEN)
    said = group.devices.server.call(
        "GET", f"/_matrix/client/v3/rooms/{room}/messages?dir=b&limit=1", None, token
    )
    target = said["chunk"][0]["event_id"]
    content = {
        "v": 1,
        "token": "e",
        "entry": pack(b"edit"),
        "m.new_content": {"v": 1, "token": "t1", "entry": pack(b"forged")},
        "m.relates_to": {"rel_type": "m.replace", "event_id": target},
    }
    group.post(token, f"send/{LOG}/edit", content)
    assert await group.everything(group.attic, expect=2) == [b"first", b"edit"]


async def test_redaction_is_for_the_maker_alone_and_breaks_no_reader(group: Group) -> None:
    """Devices cannot; what the maker redacts is missing for new readers (the fold tells), and the rest is there."""
    await group.kitchen.append(group.address, "t1", b"first")
    cursor = (await group.attic.read(group.address, None)).cursor
    room = quote(group.room, safe="")
    said = group.devices.server.call(
        "GET", f"/_matrix/client/v3/rooms/{room}/messages?dir=b&limit=1", None, group.token(KITCHEN)
    )
    target = quote(said["chunk"][0]["event_id"], safe="")
    with pytest.raises(urllib.error.HTTPError, match="403"):
        group.post(group.token(KITCHEN), f"redact/{target}/r1", {})
    group.post(group.owner(), f"redact/{target}/r2", {})
    await group.kitchen.append(group.address, "t2", b"second")
    assert (await group.attic.read(group.address, cursor)).entries == (b"second",)
    assert await group.everything(group.kitchen) == [b"second"]


# --- writing -------------------------------------------------------------------------------------------------------------


async def test_a_crash_before_the_answer_appends_once(group: Group) -> None:
    """The device comes back with the same token and knows of no answer."""
    await group.attic.append(group.address, "t", b"once")
    attempts = group.devices.folder / ATTIC / "state" / FILE
    with sqlite3.connect(attempts) as file:
        assert file.execute("UPDATE attempts SET done = 0").rowcount == 1
    async with group.devices.open(ATTIC) as again:
        await again.append(group.address, "t", b"once")
    assert await group.everything(group.kitchen) == [b"once"]


async def test_a_token_that_the_server_forgot_appends_nothing(group: Group) -> None:
    """After a day transaction ids mean nothing; and a new login has none of the old one's."""
    await group.kitchen.append(group.address, "t0", b"zero")
    await group.attic.append(group.address, "t", b"once")
    server, home = group.devices.server, group.devices.accounts(ATTIC).known().home
    known = group.devices.accounts(ATTIC).known()
    account = known.rooms[group.room]
    body = {
        "type": "m.login.password",
        "identifier": {"type": "m.id.user", "user": account.user},
        "password": account.password,
    }
    said = server.call("POST", "/_matrix/client/v3/login", body)
    anew = replace(account, token=said["access_token"], device=said["device_id"])
    assert home == account.url
    group.devices.accounts(ATTIC).write(with_room(known, group.room, anew))
    with sqlite3.connect(group.devices.folder / ATTIC / "state" / FILE) as file:
        file.execute("UPDATE attempts SET done = 0, began_ms = began_ms - ?", (2 * REMEMBERED_MS,))
    async with group.devices.open(ATTIC) as again:
        await again.append(group.address, "t", b"once")
        await again.append(group.address, "t2", b"twice")
    assert await group.everything(group.kitchen, expect=3) == [b"zero", b"once", b"twice"]


# --- access --------------------------------------------------------------------------------------------------------------


async def test_a_removed_device_can_no_longer_read(group: Group) -> None:
    """And is told so, instead of taking what it may not see for silence."""
    await group.attic.append(group.address, "t1", b"for all")
    cursor = (await group.kitchen.read(group.address, None)).cursor
    await group.attic.remove(group.address, KITCHEN)
    await group.attic.append(group.address, "t2", b"not for the kitchen")
    with pytest.raises(NotFound, match="put out"):
        await group.kitchen.read(group.address, cursor)
    with pytest.raises((Denied, NotFound)):
        await group.kitchen.append(group.address, "t3", b"no")
    with pytest.raises((Denied, NotFound)):
        await group.kitchen.join(group.address)
    async with group.devices.open(KITCHEN) as again:
        with pytest.raises(NotFound):
            while not (page := await again.read(group.address, cursor)).entries:
                assert not page.head


async def test_a_removed_device_is_woken_to_hear_it(group: Group) -> None:
    """It waits for news, and this is some."""
    page = await group.kitchen.read(group.address, None)
    waiting = asyncio.create_task(group.kitchen.read(group.address, page.cursor, wait=PATIENCE))
    await asyncio.sleep(0.2)
    await group.attic.remove(group.address, KITCHEN)
    async with asyncio.timeout(PATIENCE / 2):
        with pytest.raises(NotFound):
            await waiting


async def test_only_the_makers_login_puts_out(group: Group) -> None:
    """Another device says where to do it."""
    with pytest.raises(BackendError, match="the one who made the group is logged in"):
        await group.kitchen.remove(group.address, ATTIC)
    await group.attic.append(group.address, "t", b"still here")


async def test_an_ended_login_says_what_to_do(group: Group) -> None:
    """For an account that this device made, and for a person's login."""
    token = group.token(KITCHEN)
    group.devices.server.call("POST", "/_matrix/client/v3/logout", {}, token)
    for attempt in (
        group.kitchen.read(group.address, None),
        group.kitchen.append(group.address, "t", b"x"),
        group.kitchen.signal(group.address, b"x"),
    ):
        with pytest.raises(BackendError, match="no longer accepts the access token") as caught:
            await attempt
        assert token not in str(caught.value)
        assert not caught.value.retryable
    async with group.devices.open(SHED) as shed:
        file = group.devices.accounts(SHED)
        user = group.devices.log_in(SHED, registration=False)
        known = file.known()
        group.devices.server.call("POST", "/_matrix/client/v3/logout", {}, known.logins[known.home].token)
        with pytest.raises(BackendError, match="homeserver login") as caught:
            await shed.create("anything", "")
        assert user in str(caught.value)


async def test_a_room_that_federates_is_refused(group: Group) -> None:
    """Two homeservers would not agree on an order."""
    room = group.devices.server.call(
        "POST", "/_matrix/client/v3/createRoom", {"preset": "public_chat"}, group.owner()
    )["room_id"]
    file = group.devices.accounts(SHED)
    login = group.devices.accounts(ATTIC).known()
    file.write(with_login(file.known(), login.logins[login.home]))
    async with group.devices.open(SHED) as shed:
        with pytest.raises(Denied, match="open to other homeservers"):
            await shed.join(f"matrix:{group.devices.server.url}#{room}")


async def test_a_person_invited_by_matrix_id(group: Group) -> None:
    """Is invited in their client, comes in by their own login where no account can be made, and finds the group's Space."""
    devices = group.devices
    ben = devices.log_in(SHED, registration=False)
    file = devices.accounts(ATTIC)
    known = file.known()
    file.write(replace(known, registration={}))
    invitation = await group.attic.invite(group.address, ben)
    assert invitation == group.address
    async with devices.open(SHED) as shed:
        assert await shed.join(invitation) == group.address
        await shed.append(group.address, "t", b"ben was here")
        login = devices.accounts(SHED).known()
        token = login.logins[login.home].token
        rooms = devices.server.call("GET", "/_matrix/client/v3/joined_rooms", None, token)["joined_rooms"]
        assert len(rooms) == 4  # the log, the group's Space, its room to talk in, and a Space of his own
    assert await group.everything(group.attic, expect=1) == [b"ben was here"]
    await group.attic.remove(group.address, ben)
    async with devices.open(SHED) as shed:
        with pytest.raises(NotFound):
            await group.everything(shed)


async def test_two_devices_of_one_login(group: Group) -> None:
    """Signals reach each by itself, and one that leaves takes nothing from the other."""
    devices = group.devices
    ben = devices.log_in(SHED, registration=False)
    name = ben[1:].partition(":")[0]
    den = "d" * 20
    devices.log_in(den, registration=False, user=name)
    file = devices.accounts(ATTIC)
    file.write(replace(file.known(), registration={}))
    invitation = await group.attic.invite(group.address, ben)
    async with devices.open(SHED) as shed, devices.open(den) as second:
        await shed.join(invitation)
        await second.join(group.address)
        await shed.signals(group.address)
        await second.signals(group.address)
        await group.kitchen.signal(group.address, b"for the den", to=den)
        async with asyncio.timeout(PATIENCE):
            while not (heard := await second.signals(group.address)):
                await asyncio.sleep(0.2)
        assert [(s.sender, s.payload) for s in heard] == [(KITCHEN, b"for the den")]
        assert list(await shed.signals(group.address)) == []
        await shed.leave(group.address)
        await second.append(group.address, "t", b"still in")
    assert await group.everything(group.attic, expect=1) == [b"still in"]


# --- a homeserver in trouble -----------------------------------------------------------------------------------------------


async def test_a_hung_killed_and_restarted_homeserver(own_server: Synapse, tmp_path: Path) -> None:
    """An append into a hung one is ambiguous and in the end there once; reads go on after a restart; nothing waits for ever."""
    devices = Devices(own_server, tmp_path / "devices")
    devices.config = replace(devices.config, timeout=3.0)
    async with founded(devices) as group:
        await group.attic.append(group.address, "t1", b"before")
        cursor = (await group.kitchen.read(group.address, None)).cursor
        own_server.pause()
        try:
            with pytest.raises(Ambiguous):
                await group.attic.append(group.address, "t2", b"during")
            with pytest.raises(BackendError) as caught:
                await group.kitchen.read(group.address, cursor)
            assert caught.value.retryable
        finally:
            own_server.resume()
        await until(lambda: group.attic.append(group.address, "t2", b"during"))
        assert await group.everything(group.kitchen, expect=2) == [b"before", b"during"]
        own_server.stop(9)
        with pytest.raises(BackendError) as caught:
            await group.attic.append(group.address, "t3", b"after")
        assert caught.value.retryable
        await asyncio.to_thread(own_server.start)
        await until(lambda: group.attic.append(group.address, "t3", b"after"))
        page = await group.kitchen.read(group.address, cursor)
        assert page.entries == (b"during", b"after")
        assert page.head
        # Signals find their way again, too.
        async with asyncio.timeout(PATIENCE):
            while not await group.kitchen.signals(group.address):
                await until(lambda: group.attic.signal(group.address, b"alive"))
                await asyncio.sleep(0.5)


async def until(attempt: Any) -> None:
    """Repeat what fails for now, as an agent does."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                await attempt()
            except BackendError as error:
                assert error.retryable, error
                await asyncio.sleep(0.3)
            else:
                return


@pytest.fixture
def strict(python: Path, tmp_path: Path) -> Iterator[Synapse]:
    """A homeserver with the rate limits that Synapse has by default."""
    with synapse(tmp_path / "synapse", python, limits=None) as running:
        yield running


async def test_default_rate_limits_are_told_and_not_slept_out(strict: Synapse, tmp_path: Path) -> None:
    """A group can be founded and joined within them; beyond them an append says how long to wait; reads are not concerned."""
    async with founded(Devices(strict, tmp_path / "devices")) as group:
        entries = [b"%d" % number for number in range(30)]
        attempts = [group.kitchen.append(group.address, f"t{entry.decode()}", entry) for entry in entries]
        answers = await asyncio.gather(*attempts, return_exceptions=True)
        sent = {entry for entry, answer in zip(entries, answers, strict=True) if answer is None}
        refused = [answer for answer in answers if answer is not None]
        assert sent
        assert refused, "at once, and more than the burst"
        for answer in refused:
            assert isinstance(answer, BackendError)
            assert answer.retryable
            assert not isinstance(answer, Ambiguous)
            assert "asks to wait" in str(answer)
        assert set(await group.everything(group.attic, expect=len(sent))) == sent
        page = await group.kitchen.read(group.address, None)
        assert page.head
        await group.kitchen.signal(group.address, b"signals are not counted")
