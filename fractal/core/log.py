"""The fold: what a group's log says. Pure, total and the same for every reader.

`fold(state, raw, opener)` takes any bytes and returns a state. Every raw entry counts a position and goes into the running
hash; it changes something else only if it is authentic, follows its author's previous entry, was written by somebody who
had seen the same history, and is allowed. All else is skipped with a reason. Never reordered, never retried: position
decides.

Agents of different versions fold one log. A kind that this agent does not know is skipped (its author's chain goes on); a
field that it does not know is dropped. So a new field is one that old agents may ignore; what they must not ignore gets a
new kind. `fold_version` changes with what this agent knows, and a journal that was folded by another one is folded again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from enum import Enum
from functools import cache
from typing import Any, Protocol, assert_never

from fractal.api import canonical
from fractal.api.errors import Corrupt, Denied, InvalidInput
from fractal.api.plain import from_plain, to_plain
from fractal.core import entries, fold_apps, fold_images, fold_lease, fold_people, model
from fractal.core.fold_join import fold_request
from fractal.core.fold_rules import Certifier, Turn
from fractal.core.model import Author, GroupState, JoinRequest

RECENT = 512
"""Running hashes kept to compare with what other authors had folded."""
MAX_SKIPS = 64
MAX_STATE = 64 << 20
"""Largest encoded state that is read back, in bytes."""
RULES = 7
"""Raised when a rule of the fold changes, so that journals are folded again."""

OLD_GENERATION = "sealed under an old group key"
"""Reason for which an entry of a present device was skipped that it need only seal again."""

LOCAL = ("sealed_out", "left")
"""Fields of the folded state that depend on who reads, and are not hashed ..."""
DIAGNOSTIC = ("skipped", "skips", "alarms")
"""... and those that only say what was skipped."""


# --- what the opener says --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The signed outside of an entry."""

    author: str
    number: int
    prev: bytes
    position: int
    head: bytes
    generation: int


@dataclass(frozen=True, slots=True)
class Opened:
    """Signed by its author, a present device (or the first one), and unsealed. `kind` is "" if the inside is no payload."""

    header: Header
    kind: str
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Unsealable:
    """Signed by its author, but this reader lacks the group key of that generation."""

    header: Header


@dataclass(frozen=True, slots=True)
class Knocked:
    """A join request, proved by its invitation's key and its device's key."""

    device: str
    request: JoinRequest


@dataclass(frozen=True, slots=True)
class Ignored:
    """Belongs to this group's log and is not for the fold (a welcome)."""


@dataclass(frozen=True, slots=True)
class Invalid:
    """Everything else."""

    reason: str


Opening = Opened | Unsealable | Knocked | Ignored | Invalid


class Opener(Certifier, Protocol):
    """The cryptography of one reader, passed in. Pure: the same bytes and state give the same answer.

    Two readers' answers differ only in that one may say Unsealable where the other says Opened.
    """

    def open(self, raw: bytes, state: GroupState, /) -> Opening:
        """What these bytes are in a log whose state before them is `state`."""


# --- hashes ----------------------------------------------------------------------------------------------------------


def entry_hash(raw: bytes) -> bytes:
    """Hash of a raw entry, by which its author's next one follows it."""
    return hashlib.blake2b(raw, digest_size=32, person=b"fhs-entry").digest()


def group_id(genesis: bytes) -> str:
    """Id of the group whose first entry this is: 32 lower-case hex digits."""
    return hashlib.blake2b(genesis, digest_size=16, person=b"fhs-group").hexdigest()


def next_head(head: bytes, raw: bytes) -> bytes:
    """The running hash after one more raw entry."""
    return hashlib.blake2b(head + entry_hash(raw), digest_size=32, person=b"fhs-head").digest()


def state_hash(state: GroupState) -> bytes:
    """Hash of all that the log says, the same for every reader of the same entries.

    Left out are what is only this reader's (`sealed_out`, `left`) and what only explains (`skips`, `skipped`, `alarms`:
    their words and number may differ between versions).
    """
    return _hash_plain(to_plain(state))


def _hash_plain(plain: Mapping[str, Any]) -> bytes:
    value = {k: v for k, v in plain.items() if k not in LOCAL and k not in DIAGNOSTIC}
    return hashlib.blake2b(canonical.encode(value), digest_size=32, person=b"fhs-state").digest()


@cache
def fold_version() -> str:
    """Names what this agent's fold knows: its rules, kinds and their fields, at every depth."""
    known = [f"{RULES}", *sorted(entries.KINDS)]
    for name, kind in sorted({**vars(model), **vars(entries)}.items()):
        if isinstance(kind, type) and is_dataclass(kind):
            known.append(f"{name}:" + ",".join(f"{f.name}={f.type}" for f in fields(kind)))
        elif isinstance(kind, type) and issubclass(kind, Enum):
            known.append(f"{name}:" + ",".join(str(item.value) for item in kind))
    return hashlib.blake2b("\n".join(known).encode(), digest_size=8, person=b"fhs-fold").hexdigest()


# --- the fold --------------------------------------------------------------------------------------------------------


def fold(state: GroupState, raw: bytes, opener: Opener, /) -> GroupState:
    """The state after one more raw entry, whatever it is. Never raises."""
    before, state = state, count(state, raw)
    if before.sealed_out:
        return state
    opening = opener.open(raw, before)
    match opening:
        case Invalid():
            return _skip(state, opening.reason)
        case Ignored():
            return state
        case Knocked():
            return _knock(state, opening)
        case Unsealable():
            return _authentic(before, state, raw, opening, opener)
        case Opened():
            return _authentic(before, state, raw, opening, opener)
    assert_never(opening)


def count(state: GroupState, raw: bytes) -> GroupState:
    """The state with only position and running hash moved on: what every raw entry does, whatever it is."""
    head = next_head(state.head, raw)
    recent = (*state.recent[-(RECENT - 1) :], head)
    return replace(state, position=state.position + 1, head=head, recent=recent)


def skipped_because(state: GroupState) -> str:
    """Why the last entry that `state` counts was skipped; "" if it was not."""
    position, reason = state.skips[-1] if state.skips else (0, "")
    return reason if position == state.position else ""


def _skip(state: GroupState, reason: str) -> GroupState:
    skips = (*state.skips[-(MAX_SKIPS - 1) :], (state.position, reason))
    return replace(state, skipped=state.skipped + 1, skips=skips)


def _alarm(state: GroupState, author: str, evidence: str) -> GroupState:
    """Either the server shows two histories, or the author lies: nobody can tell. So it stands while the author is in."""
    state = _skip(state, evidence)
    alarms = {author: f"position {state.position}: {evidence}"} | dict(state.alarms)
    return replace(state, alarms=dict(sorted(alarms.items())))


def _knock(state: GroupState, opening: Knocked) -> GroupState:
    try:
        return fold_request(state, opening.device, opening.request)
    except Denied as denied:
        return _skip(state, str(denied))


def _authentic(
    before: GroupState, state: GroupState, raw: bytes, opening: Opened | Unsealable, opener: Opener
) -> GroupState:
    """An entry with its author's good signature. `before` is the state without it, `state` counts it."""
    header = opening.header
    last = before.authors.get(header.author, Author(number=0, hash=b""))
    if header.number <= last.number:
        return _skip(state, f"entry {header.number} of device {header.author} is repeated")
    if header.number > last.number + 1:
        gap = f"entry {last.number + 1} of device {header.author} is missing before {header.number}"
        return _alarm(state, header.author, gap)
    if header.prev != last.hash:
        return _skip(state, f"does not follow entry {last.number} of device {header.author}")
    if contradiction := _contradicts(before, header):
        return _alarm(state, header.author, contradiction)
    if before.generation and not before.generation - 1 <= header.generation <= before.generation:
        return _skip(_advance(state, raw, header), OLD_GENERATION)
    if isinstance(opening, Unsealable):
        return replace(state, sealed_out=state.position)
    advanced = _advance(state, raw, header)
    try:
        return _apply(before, advanced, raw, opening, opener)
    except (Denied, InvalidInput) as refused:
        # Before the group exists nobody has a chain: whoever failed to begin it may try again.
        return _skip(advanced if before.generation else state, str(refused))


def _advance(state: GroupState, raw: bytes, header: Header) -> GroupState:
    author = Author(number=header.number, hash=entry_hash(raw))
    return replace(state, authors={**state.authors, header.author: author})


def _contradicts(before: GroupState, header: Header) -> str:
    """Why the history that the author had folded is not ours; "" if it may be."""
    if header.position > before.position:
        return f"device {header.author} had read {header.position} entries, this log had {before.position}"
    if header.position == 0:
        known: bytes | None = b""
    else:
        depth = before.position - header.position
        known = before.recent[-1 - depth] if depth < len(before.recent) else None
    if known is not None and known != header.head:
        return f"device {header.author} had read another history up to position {header.position}"
    return ""


def _apply(before: GroupState, state: GroupState, raw: bytes, opened: Opened, opener: Opener) -> GroupState:
    """What the entry says, done. Raises Denied or InvalidInput with the reason to skip it."""
    header = opened.header
    kind = entries.KINDS.get(opened.kind)
    if not before.generation and kind is not entries.GroupCreated:
        raise Denied("the group does not exist yet")
    if header.generation < before.generation and kind not in _DURING_REKEYING:
        raise Denied(OLD_GENERATION)
    if kind is None:
        raise Denied(f"kind {opened.kind[:40]!r} is not known to this version")
    entry: Any = from_plain(kind, opened.body, drop_unknown=True)
    if isinstance(entry, entries.GroupCreated):
        return _create(before, state, raw, header, entry, opener)
    author = before.devices[header.author]
    turn = Turn(state, author, before.members[author.member], opener)
    after = _HANDLERS[kind](turn, entry)
    alarms = {
        d: text for d, text in after.alarms.items() if d in after.devices and not after.devices[d].removed
    }
    after = replace(after, alarms=alarms) if alarms != after.alarms else after
    mine = after.devices.get(opener.device)
    return replace(after, left=True) if mine is not None and mine.removed else after


def _create(
    before: GroupState,
    state: GroupState,
    raw: bytes,
    header: Header,
    entry: entries.GroupCreated,
    opener: Opener,
) -> GroupState:
    if before.generation:
        raise Denied("the group exists already")
    identity = group_id(raw)
    if before.id and before.id != identity:
        raise Denied(f"the first entry of group {identity}, not of {before.id}")
    return replace(fold_people.created(state, header.author, entry, opener), id=identity)


_DURING_REKEYING = frozenset({entries.Answered, entries.Took, entries.Found, entries.Released})
"""Accepted one generation late: a removal must not cost a living device its apps."""

_HANDLERS: Mapping[type, Callable[[Turn, Any], GroupState]] = {
    entries.GroupChanged: fold_people.changed,
    entries.Invited: fold_people.invited,
    entries.InvitationEnded: fold_people.invitation_ended,
    entries.Approved: fold_people.approved,
    entries.DeviceUpdated: fold_people.device_updated,
    entries.DeviceRemoved: fold_people.device_removed,
    entries.MemberRemoved: fold_people.member_removed,
    entries.RoleChanged: fold_people.role_changed,
    entries.StoreAdded: fold_apps.store_added,
    entries.StoreRemoved: fold_apps.store_removed,
    entries.AppInstalled: fold_apps.app_installed,
    entries.AppChanged: fold_apps.app_changed,
    entries.AppKeyAdded: fold_apps.app_key_added,
    entries.AppImages: fold_images.app_images,
    entries.AppMoved: fold_apps.app_moved,
    entries.AppRestoreWished: fold_apps.app_restore_wished,
    entries.AppRestored: fold_apps.app_restored,
    entries.AppRemoved: fold_apps.app_removed,
    entries.Pinned: fold_apps.pinned,
    entries.Challenged: fold_lease.challenged,
    entries.Answered: fold_lease.answered,
    entries.Took: fold_lease.took,
    entries.Found: fold_lease.found,
    entries.Released: fold_lease.released,
    entries.Serving: fold_lease.serving,
    entries.RouteAdded: fold_apps.route_added,
    entries.RouteRemoved: fold_apps.route_removed,
    entries.Checkpointed: fold_apps.checkpointed,
}


# --- checkpoints -----------------------------------------------------------------------------------------------------


def checkpoint_bytes(state: GroupState) -> bytes:
    """The state to keep in a store (sealed by the caller); `state_from_checkpoint` reads it back.

    Raises InvalidInput for a state that this reader could not fold to its end.
    """
    if state.sealed_out or not state.generation:
        raise InvalidInput("a log that could not be read to its end gives no checkpoint")
    plain = {k: v for k, v in to_plain(state).items() if k not in LOCAL and k not in DIAGNOSTIC}
    return canonical.encode({"v": 1, "state": plain})


def state_from_checkpoint(data: bytes, expected: bytes) -> GroupState:
    """The state whose `state_hash` is `expected`, a hash out of a signed `log.checkpointed` entry.

    Raises Corrupt for anything else. Fields of a newer agent are dropped, as if this one had folded the entries.
    """
    try:
        value = canonical.decode(data, limit=MAX_STATE)
        plain = value.get("state")
        if value.get("v") != 1 or not isinstance(plain, dict) or _hash_plain(plain) != expected:
            raise InvalidInput("its hash is not the one that the log states")
        state = from_plain(GroupState, plain, drop_unknown=True)
    except InvalidInput as error:
        raise Corrupt(f"checkpoint is damaged: {error}; replay the log instead") from error
    # What the hash does not cover is not believed.
    return replace(state, sealed_out=0, left=False, skipped=0, skips=(), alarms={})
