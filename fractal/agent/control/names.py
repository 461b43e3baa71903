"""From what a person typed to the one thing meant: by name, by id, or told what there is to choose from."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

from fractal.agent.control.params import Params
from fractal.agent.control.ports import ControlAgent, ControlGroup
from fractal.api.errors import Conflict, ExitCode, InvalidInput, NotFound
from fractal.core.model import App, Device, GroupState, JoinRequest, Member, StoreEntry

T = TypeVar("T")
MIN_ID = 6
"""Fewest characters by which the beginning of an id stands for the whole."""
MAX_NAME = 80
NAMED = 20
"""Most names that an error lists."""


class UnknownName(NotFound):
    """No such thing, or more than one. `candidates` are what could have been meant."""

    def __init__(self, message: str, candidates: Iterable[str], *, ambiguous: bool = False) -> None:
        super().__init__(message)
        self.candidates = tuple(candidates)
        if ambiguous:
            self.exit_code = ExitCode.USAGE
            self.code = "ambiguous"


def resolve(kind: str, wanted: str, names: Mapping[str, str]) -> str:
    """The id that `wanted` means among `names` (id -> name).

    An exact name goes before an id, an id before a name in other capitals, that before the beginning of an id. Raises UnknownName.
    """
    wanted = wanted.strip()
    folded = wanted.casefold()
    for matches in (
        [i for i, name in names.items() if name == wanted],
        [i for i in names if i == folded],
        [i for i, name in names.items() if name.casefold() == folded],
        [i for i in names if len(folded) >= MIN_ID and i.startswith(folded)],
    ):
        if len(matches) == 1:
            return matches[0]
        if matches:
            candidates = sorted(f"{names[i]} ({i})" for i in matches)
            raise UnknownName(
                f"{kind} {wanted[:MAX_NAME]!r} is ambiguous: give the id of one of {', '.join(candidates)}",
                candidates,
                ambiguous=True,
            )
    raise _unknown(kind, wanted, names)


def _unknown(kind: str, wanted: str, names: Mapping[str, str]) -> UnknownName:
    shown = sorted(set(names.values()), key=str.casefold)
    by_fold = {name.casefold(): name for name in shown}
    close = [by_fold[n] for n in difflib.get_close_matches(wanted.casefold(), by_fold, n=1)]
    text = f"no {kind} {wanted[:MAX_NAME]!r}"
    if not shown:
        return UnknownName(f"{text}: there is no {kind} yet", shown)
    more = ", ..." if len(shown) > NAMED else ""
    text += f": did you mean {close[0]!r}?" if close else "."
    text += f" Known: {', '.join(shown[:NAMED])}{more}."
    return UnknownName(text, shown)


def find_group(agent: ControlAgent, params: Params) -> ControlGroup:
    """The group that `params` names; without a name the only one."""
    names = {gid: group.journal.state.name for gid, group in agent.groups.items()}
    wanted = params.text("group")
    if wanted:
        return agent.groups[resolve("group", wanted, names)]
    if len(names) == 1:
        return next(iter(agent.groups.values()))
    if not names:
        raise NotFound(
            "this device is in no group: create one with `homeserver group create NAME` or join one with "
            "`homeserver group join CODE`"
        )
    shown = sorted(names.values(), key=str.casefold)
    raise UnknownName(
        f"this device is in {len(names)} groups: say which with --group ({', '.join(shown)})",
        shown,
        ambiguous=True,
    )


def find_device(state: GroupState, wanted: str) -> Device:
    """A device of the group."""
    return _among("device", wanted, _present(state.devices))


def find_member(state: GroupState, wanted: str) -> Member:
    """A member of the group."""
    return _among("member", wanted, _present(state.members))


def find_app(state: GroupState, wanted: str) -> App:
    """An app of the group."""
    return _among("app", wanted, _present(state.apps))


def find_archived(state: GroupState, wanted: str) -> App:
    """An app of the group, or one that was removed: by its id, or by its name if no other has that now."""
    try:
        return find_app(state, wanted)
    except UnknownName as error:
        removed = {i: app for i, app in state.apps.items() if app.removed}
        try:
            return removed[resolve("removed app", wanted, {i: app.name for i, app in removed.items()})]
        except UnknownName as other:
            raise (other if other.code == "ambiguous" else error) from None


def find_store(state: GroupState, wanted: str) -> StoreEntry:
    """A store of the group."""
    return _among("store", wanted, _present(state.stores))


def find_request(state: GroupState, wanted: str) -> tuple[str, JoinRequest]:
    """Id and request of a device that asks to join."""
    names = {i: request.name for i, request in state.requests.items()}
    found = resolve("device asking to join", wanted, names)
    return found, state.requests[found]


def check_new_name(kind: str, name: str, taken: Iterable[str]) -> str:
    """A name fit for a new thing, stripped. Raises InvalidInput: empty, long, unprintable; Conflict: taken in any capitals."""
    name = name.strip()
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise InvalidInput(f"a {kind}'s name has 1 to {MAX_NAME} printable characters")
    if name.casefold() in {t.casefold() for t in taken}:
        raise Conflict(f"the name {name!r} is taken by another {kind}: choose another")
    return name


Present = TypeVar("Present", Device, Member, App, StoreEntry)


def _present(things: Mapping[str, Present]) -> dict[str, Present]:
    return {i: thing for i, thing in things.items() if not thing.removed}


def _among(kind: str, wanted: str, things: Mapping[str, Present]) -> Present:
    return things[resolve(kind, wanted, {i: thing.name for i, thing in things.items()})]
