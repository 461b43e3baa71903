"""Coordination kind: one ordered, append-only log per group, and small signals beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from fractal.api.backend import Backend, C, Offer

MAX_ENTRY = 48 * 1024
"""Bytes of an entry at most."""
MAX_SIGNAL = 32 * 1024
"""Bytes of a signal at most."""


@dataclass(frozen=True, slots=True)
class Page:
    """Entries in log order, and where to go on."""

    entries: tuple[bytes, ...]
    cursor: str
    """Opaque; give it to the next `read`. Stays valid across restarts of everything."""
    head: bool
    """True: at the moment the log answered there was nothing after `cursor`."""


@dataclass(frozen=True, slots=True)
class Signal:
    """A small message; may be lost, late, repeated or forged. A hint, never proof."""

    sender: str
    payload: bytes


class Coordinator(Protocol):
    """A log is opened by its address, a string that the coordinator made and that other devices can join by.

    Entries are opaque, 1 byte to 48 KiB. Every reader sees every entry once, in one order that all readers share.
    """

    @property
    def staleness(self) -> float:
        """Seconds by which a read up to the head may lag behind an acknowledged append. 0: never."""

    async def create(self, group: str, name: str) -> str:
        """Make a new empty log and return its address. Idempotent by `group`, a random token that the caller made up."""

    async def join(self, address: str) -> str:
        """Make this device a reader and writer of the log, by its address or by what `invite` returned; the plain address.

        Idempotent. Raises NotFound, Denied, InvalidInput.
        """

    async def leave(self, address: str) -> None:
        """Give up access. Nothing if not joined."""

    async def append(self, address: str, token: str, entry: bytes) -> None:
        """Append; durable and ordered when this returns. Repeating the same token appends nothing.

        Raises Ambiguous (repeat with the same token), BackendError with retryable and, in the text, how long to wait.
        """

    async def read(self, address: str, after: str | None, *, limit: int = 500, wait: float = 0.0) -> Page:
        """Entries after the cursor (None: from the beginning), oldest first, at most `limit`.

        With nothing new it waits up to `wait` seconds for something. A page never skips an entry.
        """

    async def signal(self, address: str, payload: bytes, *, to: str | None = None) -> None:
        """Send at most 32 KiB to one device, or to all. Without `to`, only the last one of each sender is kept."""

    async def signals(self, address: str) -> Sequence[Signal]:
        """What arrived since the last call: the last broadcast of each sender if new, and all addressed to this device."""

    async def invite(self, address: str, member: str) -> str:
        """Let one more device join; what it needs for `join`, which goes into the invitation's code.

        That is the address, or more than it where a device needs an account: then it is a secret, and no address for any other
        call. `member` is the backend-specific id (e.g. a Matrix id) of the person whose device it is, empty if not known.
        Raises NotFound, Denied, InvalidInput.
        """

    async def remove(self, address: str, member: str) -> None:
        """Take a person's or device's access away, as far as the backend has any."""


class CoordinationOffer(Offer):
    """A `CoordinationBackend` of any config type: what `fractal_coordinators` yields."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinationBackend(CoordinationOffer, Backend[Coordinator, C]):
    """Offers a `Coordinator`."""
