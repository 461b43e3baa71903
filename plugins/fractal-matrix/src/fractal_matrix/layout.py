"""The rooms of a group: its log, and around it what people see: a Space for the group, with a room to talk in.

All are made by the member's account and not by a device's, as the creator of a room (version 12) can never be put out of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

from fractal.api.errors import BackendError, Denied, FractalError, NotFound
from fractal_matrix.accounts import plain_dict
from fractal_matrix.names import CONTACT, LOG, ROOT, text_of
from fractal_matrix.session import Session, translated
from fractal_matrix.wire import Refused

NOBODY = 100
POWERS: Mapping[str, Any] = {
    "users_default": 0,
    "events_default": NOBODY,
    "state_default": NOBODY,
    "invite": 0,  # whoever the group's own rules let invite; a stranger in the room can read nothing
    "kick": 50,
    "ban": 50,
    "redact": NOBODY,
    "events": {LOG: 0, CONTACT: 0, "m.room.redaction": NOBODY},
}
"""Devices may write entries and say who they are; nobody but the creator may change anything else."""


async def make_log(session: Session, group: str) -> str:
    """The log room of the group with that token, made unless it is there. Raises Denied, BackendError."""
    name = (
        "homeserver-" + blake2b(group.encode("utf-8"), digest_size=16, person=b"fhs-matrix-room").hexdigest()
    )
    body = {
        "preset": "private_chat",
        "visibility": "private",
        "room_alias_name": name,
        "name": f"Log of group {group[:6]}",
        "topic": "Sealed entries of Fractal HomeServer: nothing here is for people.",
        "creation_content": {"m.federate": False},
        "power_level_content_override": POWERS,
        "initial_state": [
            _state("m.room.history_visibility", {"history_visibility": "shared"}),
            _state("m.room.join_rules", {"join_rule": "invite"}),
            _state("m.room.guest_access", {"guest_access": "forbidden"}),
        ],
    }
    try:
        said = await session.do("POST", ["createRoom"], body)
    except Refused as error:
        if error.errcode != "M_ROOM_IN_USE":
            raise translated(error) from error
        return await _made_before(session, name)
    return _room(said)


async def _made_before(session: Session, name: str) -> str:
    server = session.account.user.partition(":")[2]
    try:
        said = await session.call("GET", ["directory", "room", f"#{name}:{server}"])
    except Refused as error:
        raise translated(error) from error
    room = _room(said)
    if await creator(session, room) != session.account.user:
        raise Denied(f"room {room}, which has the name of this group's log, was made by somebody else")
    return room


async def creator(session: Session, room: str) -> str:
    """Who made the room, "" if that cannot be seen. Raises BackendError."""
    for event in await whole_state(session, room):
        if event.get("type") == "m.room.create":
            return text_of(event, "sender")
    return ""


async def whole_state(session: Session, room: str) -> list[Mapping[str, Any]]:
    """The room's state events. Raises Denied, BackendError."""
    try:
        said = await session.call("GET", ["rooms", room, "state"])
    except Refused as error:
        raise translated(error) from error
    events = said.get("list")
    return [event for event in events if isinstance(event, dict)] if isinstance(events, list) else []


async def check_log(session: Session, room: str) -> None:
    """Refuse a room in which a log is not safe. Raises Denied."""
    created = await session.state(room, "m.room.create")
    if created.get("m.federate", True) is not False:
        raise Denied(
            f"room {room} is open to other homeservers, which would order its events differently: it cannot hold a log"
        )
    visible = await session.state(room, "m.room.history_visibility")
    if visible.get("history_visibility") not in ("shared", "world_readable"):
        raise Denied(f"room {room} hides its history from those who come later: it cannot hold a log")


async def make_surroundings(session: Session, room: str) -> None:
    """The group's Space with the log and a room to talk in, below the member's own Space. Repeatable.

    Best effort: nothing depends on it, and what is missing is made when somebody is invited. Names say nothing of the group's, which is not for the homeserver; people may change
    them.
    """
    server = session.account.user.partition(":")[2]
    try:
        space = await parent(session, room)
        if not space:
            space = await _make(session, f"Group {room[1:7]}", space=True)
            # Noted first, so that what a crash leaves half is gone on with and not made anew.
            await session.put_state(room, "m.space.parent", {"via": [server], "canonical": True}, space)
            await session.put_state(space, "m.space.child", {"via": [server]}, room)
        if not await talk(session, space, room):
            chat = await _make(session, f"Talk of group {room[1:7]}", space=False)
            await session.put_state(space, "m.space.child", {"via": [server], "suggested": True}, chat)
        await show_in_root(session, space)
    except FractalError as error:
        session.context.logger.warning("matrix: the Space around room %s is not complete: %s", room, error)


async def parent(session: Session, room: str) -> str:
    """The Space that the room says it is in; "" if none."""
    return next(iter(await _linked(session, room, "m.space.parent")), "")


async def talk(session: Session, space: str, log: str) -> str:
    """The first room in the Space that is not the log; "" if none."""
    return next((room for room in await _linked(session, space, "m.space.child") if room != log), "")


async def _linked(session: Session, room: str, kind: str) -> list[str]:
    """Rooms that the room's links of one kind name; a link that was taken back has no `via`."""
    return [
        text_of(event, "state_key")
        for event in await whole_state(session, room)
        if event.get("type") == kind and plain_dict(event.get("content")).get("via")
    ]


async def show_in_root(session: Session, space: str) -> None:
    """Put the group's Space into the member's own one, which is made and noted in the account if need be."""
    user = session.account.user
    path = ["user", user, "account_data", ROOT]
    try:
        root = text_of(await session.call("GET", path), "space")
    except Refused as error:
        if error.status != 404:
            raise translated(error) from error
        root = ""
    if not root or await session.membership(root, user) != "join":
        root = await _make(session, "HomeServer", space=True)
        try:
            await session.do("PUT", path, {"space": root})
        except Refused as error:
            raise translated(error) from error
    await session.put_state(root, "m.space.child", {"via": [user.partition(":")[2]]}, space)


async def _make(session: Session, name: str, *, space: bool) -> str:
    body: dict[str, Any] = {"preset": "private_chat", "visibility": "private", "name": name}
    if space:
        body["creation_content"] = {"type": "m.space"}
        body["power_level_content_override"] = {"events_default": NOBODY}
    else:
        body["initial_state"] = [_state("m.room.encryption", {"algorithm": "m.megolm.v1.aes-sha2"})]
    try:
        return _room(await session.do("POST", ["createRoom"], body))
    except Refused as error:
        raise translated(error) from error


async def invite(session: Session, room: str, user: str) -> None:
    """Invite unless that user is in or invited. Raises Denied, BackendError."""
    if await session.membership(room, user) not in ("join", "invite"):
        await session.act(room, "invite", {"user_id": user})


async def invite_around(session: Session, log: str, user: str) -> None:
    """Invite a person to the Space and the room to talk in; nothing depends on it."""
    try:
        space = await parent(session, log)
        for room in (space, await talk(session, space, log) if space else ""):
            if room:
                await invite(session, room, user)
    except FractalError as error:
        session.context.logger.warning("matrix: %s is not invited to the group's Space: %s", user, error)


async def enter_around(session: Session, space: str) -> None:
    """Accept such invitations, and show the Space in this member's own one; nothing depends on it."""
    try:
        if not await _accept(session, space):
            return  # an account that only reads the log
        for room in await _linked(session, space, "m.space.child"):
            await _accept(session, room)
        await show_in_root(session, space)
    except FractalError as error:
        session.context.logger.warning("matrix: the Space %s is not entered: %s", space, error)


async def _accept(session: Session, room: str) -> bool:
    """Enter a room if invited; whether this account is in."""
    try:
        await session.act(room, "join")
    except (Denied, NotFound):
        return False
    return True


async def put_out(session: Session, room: str, user: str) -> None:
    """Take a user out of a room; nothing if not in. Raises Denied, BackendError."""
    if await session.membership(room, user) in ("join", "invite"):
        await session.act(room, "kick", {"user_id": user, "reason": "removed from the group"})


def _room(said: Mapping[str, Any]) -> str:
    room = text_of(said, "room_id")
    if not room.startswith("!"):
        raise BackendError("the homeserver names no room in its answer: is this a Matrix homeserver?")
    return room


def _state(kind: str, content: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": kind, "state_key": "", "content": content}
