"""Joining a group: what the device does that wants to come in.

Repeatable after a crash at any point: the code is noted before the request is sent, and what opens the log is noted in one
write after the log was checked from its first entry on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace

from fractal.agent.checkpoints import fetch_checkpoint
from fractal.agent.here import Here, group_addresses, member_keys, send
from fractal.agent.journal import checked
from fractal.agent.journal_notes import base_notes, key_notes
from fractal.agent.notes import Notes
from fractal.api.coordination import Coordinator, Page
from fractal.api.errors import (
    BackendError,
    Conflict,
    Denied,
    FractalError,
    InvalidInput,
    NotFound,
    Unreachable,
)
from fractal.api.store import Store
from fractal.core.log import fold, state_from_checkpoint
from fractal.core.model import GroupState, StoreEntry
from fractal.crypto.join import Code, Welcome, join_request, make_code, open_welcome, parse_code
from fractal.crypto.keys import MemberKeys
from fractal.crypto.seal import GroupOpener

_log = logging.getLogger(__name__)

OpenStore = Callable[[StoreEntry], AbstractAsyncContextManager[Store]]

CHECKPOINT_TIMEOUT = 30.0
"""Seconds for fetching a checkpoint from one store."""
LOOK_WAIT = 2.0
"""Seconds of one long poll while a welcome is awaited."""
HISTORY_LIMIT = 600.0
"""Seconds after which a history that does not end is given up."""
READ_TIMEOUT = 15.0
"""Seconds beyond the long poll after which a read is given up."""


async def request_join(here: Here, code_text: str, *, device_name: str, member_name: str = "") -> str:
    """Ask to be let in with a code; the group's id. `await_welcome` goes on from here, also after a restart.

    Repeating it asks again. Raises InvalidInput, Denied, NotFound, Conflict if this device is in the group already.
    """
    code = parse_code(code_text)
    if code.group in group_addresses(here.notes):
        raise Conflict(f"this device is in group {code.group} already")
    member = None
    if code.new_member:
        member = member_keys(here.notes, code.group) or MemberKeys.generate(here.entropy)
        if not member_name:
            raise InvalidInput("this code is for a new member: tell the name to be known by")
    raw = join_request(code, here.keys, device_name, here.entropy, member=member, member_name=member_name)
    # What is kept has the plain address: an account that the code offered is made now, and means nothing later.
    code = replace(code, address=await here.coordinator.join(code.address))
    changes: dict[str, bytes | None] = {f"joining/{code.group}": make_code(code).encode("ascii")}
    if member is not None:
        changes["member/keys"] = member.to_bytes()
    here.notes.write(changes)
    await send(here, code.address, raw)
    return code.group


def pending_joins(notes: Notes) -> list[str]:
    """Groups whose welcome this device awaits."""
    return [key.removeprefix("joining/") for key, _ in notes.scan("joining/")]


def withdraw_join(notes: Notes, group: str) -> None:
    """Await that group's welcome no longer."""
    notes.write({f"joining/{group}": None})


async def await_welcome(
    here: Here, group: str, *, timeout: float, open_store: OpenStore | None = None
) -> str:
    """Wait until somebody approved this device, check the whole log, and note what opens it; the group's id.

    What the log server shows is believed only if its first entry has the hash that the code states, the log's own rules lead
    from there to an approval of this very device under this very code, and an approving device signed the welcome.
    With `open_store` the journal begins with the group's last checkpoint if a store of the group has it.
    Raises Unreachable after `timeout` seconds (call again to go on), Denied for a welcome that does not hold.
    """
    stored = here.notes.get(f"joining/{group}")
    if stored is None:
        raise NotFound(f"this device has not asked to join group {group}")
    code = parse_code(stored.decode("ascii"))
    end = here.clock.boottime() + timeout
    cursor: str | None = None
    refused = ""
    while True:
        wait = min(LOOK_WAIT, max(0.0, end - here.clock.boottime()))
        page = await _read(here.coordinator, code.address, cursor, wait)
        cursor = page.cursor
        for raw in page.entries:
            try:
                greeting = open_welcome(raw, code, here.keys)
            except InvalidInput:
                continue  # the rest of the log, or something hostile: either way not for us
            refused = await _accept(here, code, greeting, open_store)
            if not refused:
                return group
        if here.clock.boottime() >= end and (page.head or not page.entries):
            break
        _require_end(here, code, end)
    if refused:
        raise Denied(f"a welcome to group {group} came, but {refused}")
    raise Unreachable(f"nobody approved this device in group {group} yet: it goes on asking")


async def _accept(here: Here, code: Code, greeting: Welcome, open_store: OpenStore | None) -> str:
    """Note the group's address and keys if the log bears the welcome out; else the reason why it does not."""
    opener = GroupOpener(here.keys, greeting.group_keys)
    state = await _fold_all(here, code, opener)
    device = state.devices.get(here.keys.id)
    invitation = state.invitations.get(code.invitation)
    author = state.devices.get(greeting.author)
    if state.sealed_out or not state.generation:
        return "its keys do not open the log"
    if state.forked:
        return f"the log server shows a forked log ({state.forked})"
    if device is None or device.removed or device.box_key != here.keys.box_public:
        return "this device is not in the group"
    if invitation is None or not invitation.used or invitation.verify_key != code.signer.public:
        return "the log does not say that this code was used"
    if author is None or not greeting.signed_by(author.sign_key):
        return "no device of the group signed it"
    changes: dict[str, bytes | None] = {
        f"groups/{code.group}": code.address.encode("utf-8"),
        f"joining/{code.group}": None,
        **key_notes(code.group, greeting.group_keys),
    }
    if greeting.member_seed:
        member = MemberKeys(greeting.member_seed)
        if member.id != device.member:
            return "it brings another member's key"
        key = "member/keys" if here.notes.get("member/keys") is None else f"group/{code.group}/member"
        changes[key] = member.to_bytes()
    if open_store is not None:
        changes |= await _checkpoint(state, greeting.group_keys, open_store)
    here.notes.write(changes)
    return ""


async def _checkpoint(
    state: GroupState, group_keys: Mapping[int, bytes], open_store: OpenStore
) -> dict[str, bytes | None]:
    """What lets the journal begin with the last checkpoint that the checked log states; nothing if it cannot be had.

    It spares the journal a second replay of what was checked just now, so no failure here is worth more than a line.
    """
    stated = state.checkpoint
    if stated is None:
        return {}
    for entry in state.stores.values():
        if entry.removed:
            continue
        try:
            async with asyncio.timeout(CHECKPOINT_TIMEOUT), open_store(entry) as store:
                data = await fetch_checkpoint(store, stated.key, group=state.id, group_key=group_keys)
            state_from_checkpoint(data, stated.state_hash)
            return base_notes(state.id, data, stated.state_hash)
        except (FractalError, TimeoutError) as error:
            _log.info("store %s: no checkpoint: %s", entry.name, str(error) or "no answer in time")
    _log.info("the log of group %s is folded from its beginning", state.id)
    return {}


async def _fold_all(here: Here, code: Code, opener: GroupOpener) -> GroupState:
    state = GroupState(id=code.group)
    cursor: str | None = None
    begun = here.clock.boottime()
    while True:
        _require_end(here, code, begun)
        page = await _read(here.coordinator, code.address, cursor, 0.0)
        for raw in page.entries:
            state = fold(state, raw, opener)
        if page.head:
            return state
        cursor = page.cursor


def _require_end(here: Here, code: Code, since: float) -> None:
    """A stranger's log server may make entries up for ever, each of which is read and skipped."""
    if here.clock.boottime() - since > HISTORY_LIMIT:
        raise Unreachable(
            f"the log of group {code.group} does not come to an end: its server is broken or hostile"
        )


async def _read(coordinator: Coordinator, address: str, cursor: str | None, wait: float) -> Page:
    try:
        async with asyncio.timeout(wait + READ_TIMEOUT):
            return checked(await coordinator.read(address, cursor, wait=wait), address)
    except TimeoutError as error:
        raise BackendError(
            f"log {address} did not answer within {READ_TIMEOUT:g} s", retryable=True
        ) from error
