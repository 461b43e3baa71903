"""What a journal keeps in the notes: one group's entries, cursor, folded state, outbox, checkpoint and keys.

The entries are the truth; the state is made of them again whenever it is absent, damaged, or was made by another version
of the fold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fractal.agent.notes import Notes
from fractal.api import canonical
from fractal.api.errors import Corrupt, InvalidInput
from fractal.api.plain import from_plain, to_plain
from fractal.core.log import MAX_STATE, fold_version, state_from_checkpoint
from fractal.core.model import GroupState

HASH = 32


def key_notes(group: str, group_keys: Mapping[int, bytes]) -> dict[str, bytes | None]:
    """What to note so that a journal of that group has these keys, by generation."""
    return {f"group/{group}/key/{generation}": key for generation, key in group_keys.items()}


def base_notes(group: str, checkpoint: bytes, expected: bytes) -> dict[str, bytes | None]:
    """What to note so that a journal of that group begins with a checkpoint of that hash."""
    return {f"group/{group}/base": expected + checkpoint}


@dataclass(frozen=True, slots=True)
class Outbox:
    """Our entry on its way."""

    raw: bytes
    token: str


class JournalNotes:
    """One group's part of the notes. Every write is one atomic change."""

    def __init__(self, notes: Notes, group: str) -> None:
        self._notes = notes
        self._group = group
        self._prefix = f"group/{group}/"

    def group_keys(self) -> dict[int, bytes]:
        """Noted group keys by generation."""
        return {int(name.rpartition("/")[2]): key for name, key in self._notes.scan(f"{self._prefix}key/")}

    def add_keys(self, group_keys: Mapping[int, bytes]) -> None:
        """Note more group keys."""
        self._notes.write(key_notes(self._group, group_keys))

    def cursor(self) -> str | None:
        """Where to read on; None for the beginning."""
        noted = self._notes.get(f"{self._prefix}cursor")
        return None if noted is None else noted.decode("utf-8")

    def entries(self, after: int) -> list[tuple[int, bytes]]:
        """Positions beyond `after` and their raw entries. Raises Corrupt if one is missing."""
        found = self._notes.scan(f"{self._prefix}entry/")
        entries = [(at, raw) for key, raw in found if (at := int(key.rpartition("/")[2])) > after]
        for expected, (position, _) in enumerate(entries, start=max(after, 0) + 1):
            if position != expected:
                raise Corrupt(
                    f"the notes of group {self._group} lack log entry {expected}: leave the group on this device and join again"
                )
        return entries

    def state(self) -> GroupState | None:
        """The folded state if this version of the fold noted one. Raises InvalidInput if it is damaged."""
        noted = self._notes.get(f"{self._prefix}state")
        if noted is None:
            return None
        value = canonical.decode(noted, limit=MAX_STATE)
        return from_plain(GroupState, value.get("state")) if value.get("fold") == fold_version() else None

    def accept(
        self, entries: Mapping[int, bytes], cursor: str, *, state: GroupState | None, delivered: bool
    ) -> None:
        """Note a page: its entries, where to read on, the state if given, and that the outbox was delivered if so."""
        changes: dict[str, bytes | None] = {
            f"{self._prefix}entry/{position:012d}": raw for position, raw in entries.items()
        }
        changes[f"{self._prefix}cursor"] = cursor.encode("utf-8")
        if state is not None:
            note = {"fold": fold_version(), "state": to_plain(state)}
            changes[f"{self._prefix}state"] = canonical.encode(note)
        if delivered:
            changes[f"{self._prefix}outbox"] = None
        self._notes.write(changes)

    def outbox(self) -> Outbox | None:
        """What was on its way. Raises Corrupt."""
        noted = self._notes.get(f"{self._prefix}outbox")
        if noted is None:
            return None
        try:
            value = canonical.decode(noted)
            return Outbox(canonical.unpack(value.get("raw")), str(value.get("token")))
        except InvalidInput as error:
            raise Corrupt(f"the outbox of group {self._group} is damaged: {error}") from error

    def set_outbox(self, outbox: Outbox | None) -> None:
        """Note what is going to be sent, or that nothing is."""
        note = None
        if outbox is not None:
            note = canonical.encode({"token": outbox.token, "raw": canonical.pack(outbox.raw)})
        self._notes.write({f"{self._prefix}outbox": note})

    def base(self) -> GroupState | None:
        """The checkpoint that the journal began with. Raises Corrupt."""
        noted = self._notes.get(f"{self._prefix}base")
        return state_from_checkpoint(noted[HASH:], noted[:HASH]) if noted else None

    def set_base(self, checkpoint: bytes | None, expected: bytes = b"") -> None:
        """Note the checkpoint to begin with, or that it is of no use."""
        if checkpoint is None:
            self._notes.write({f"{self._prefix}base": None})
        else:
            self._notes.write(base_notes(self._group, checkpoint, expected))
