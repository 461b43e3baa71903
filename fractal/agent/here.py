"""What membership functions need of this device, and what they keep in its notes.

Notes: `groups/<id>` (address of the log of a group that this device is in), `joining/<id>` (a code whose welcome is awaited),
`welcome/<id>/<device>` (an approval whose welcome was not sent yet), `member/keys` (the member that this device belongs
to), `group/<id>/member` (another member, for that group alone). What else is below `group/<id>/` is the journal's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from fractal.agent.notes import Notes
from fractal.api.context import Clock, Entropy
from fractal.api.coordination import Coordinator
from fractal.api.errors import BackendError, NotFound
from fractal.core.entries import Entry
from fractal.core.model import GroupState
from fractal.crypto.keys import DeviceKeys, MemberKeys

SEND_TRIES = 5
SEND_PAUSE = 0.5
"""Seconds before an append is repeated, twice as long each time."""
SEND_WAIT = 60.0
"""Seconds in all for which a log may ask to wait. Synapse's own limit takes one message in five seconds after ten."""


class Here(Protocol):
    """This device: what the agent offers to these functions (`fractal.agent.agent.Agent` does)."""

    @property
    def coordinator(self) -> Coordinator:
        """The log's backend."""

    @property
    def keys(self) -> DeviceKeys:
        """This device's keys."""

    @property
    def notes(self) -> Notes:
        """Its durable memory."""

    @property
    def clock(self) -> Clock:
        """Time."""

    @property
    def entropy(self) -> Entropy:
        """Randomness."""


class GroupLog(Protocol):
    """The group's log on this device (`fractal.agent.journal.Journal`)."""

    @property
    def state(self) -> GroupState:
        """As far as it was folded."""

    def group_key(self, generation: int | None = None) -> tuple[int, bytes]:
        """A generation and its key."""

    async def append(
        self, entry: Entry, *, wanted: Callable[[GroupState], bool] | None = None, timeout: float = 30.0
    ) -> int:
        """Append and wait until it is folded. Raises Denied when it was skipped, Stale when it was not wanted any more."""


def group_addresses(notes: Notes) -> dict[str, str]:
    """Groups that this device is in: id -> address of the log."""
    return {key.removeprefix("groups/"): value.decode("utf-8") for key, value in notes.scan("groups/")}


def address_of(here: Here, group: str) -> str:
    """Address of a group's log. Raises NotFound if this device is not in it."""
    address = here.notes.get(f"groups/{group}")
    if address is None:
        raise NotFound(f"this device is not in group {group}")
    return address.decode("utf-8")


def member_keys(notes: Notes, group: str | None = None) -> MemberKeys | None:
    """The key of the member that this device belongs to in that group; None before there is one."""
    stored = notes.get(f"group/{group}/member") if group else None
    stored = stored or notes.get("member/keys")
    return MemberKeys.from_bytes(stored) if stored else None


def forget_group(notes: Notes, group: str) -> None:
    """Drop every note about a group that this device left; its keys too."""
    keys = [f"groups/{group}", f"joining/{group}"]
    for prefix in (f"group/{group}/", f"welcome/{group}/"):
        keys += [key for key, _ in notes.scan(prefix)]
    notes.write(dict.fromkeys(keys))


async def send(here: Here, address: str, raw: bytes) -> None:
    """Append what is no author's next entry. Raises BackendError when the log does not take it in a few tries.

    A log that asks to wait is waited for, as long as that may be in all.
    """
    token = here.entropy.bytes(16).hex()
    pause, end = SEND_PAUSE, here.clock.boottime() + SEND_WAIT
    for left in reversed(range(SEND_TRIES)):
        try:
            await here.coordinator.append(address, token, raw)
        except BackendError as error:
            asked = error.wait
            if not (error.retryable and left) or here.clock.boottime() + asked > end:
                raise
        else:
            return
        await here.clock.sleep(asked + here.entropy.uniform(pause / 2, pause))
        pause *= 2
