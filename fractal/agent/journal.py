"""One group's log on this device: reads it, folds it, keeps both durably, and writes to it.

Entries, cursor and what became of our own entry are noted in one write before anything is believed, so that a crash at any
point loses nothing and repeats nothing. An entry of ours is noted in the outbox before it is sent, and sent with the same
bytes and token until it is read back; the log's answer to `append` alone counts for nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fractal.agent.journal_notes import JournalNotes, Outbox, key_notes
from fractal.agent.notes import Notes
from fractal.api.context import Clock, Entropy
from fractal.api.coordination import MAX_ENTRY, Coordinator, Page
from fractal.api.errors import Ambiguous, BackendError, Corrupt, Denied, FractalError, InvalidInput
from fractal.core.entries import Entry
from fractal.core.log import OLD_GENERATION, count, fold, skipped_because, state_from_checkpoint
from fractal.core.model import GroupState
from fractal.crypto.keys import DeviceKeys
from fractal.crypto.seal import GroupOpener, seal_entry

PAGE = 500
MAX_PAGES = 40
"""Pages that one `poll` reads at most, so that a long history does not hide a cancellation or a deadline."""
SAVE_EVERY = 50
"""Entries after which the folded state is noted again; after a restart at most so many are folded."""
ANSWERING = 1.0
"""Seconds of the answer window that a read which hangs must leave: to read again, and to append the answer."""
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0
"""Seconds between attempts to append."""
LONGEST_WAIT = 30.0
"""Seconds at most that a log may ask to wait before the next attempt."""
MAX_SEALS = 4
"""How often one entry is sealed again because the group's keys were rotated meanwhile."""


def checked(page: Page, address: str) -> Page:
    """The page, if a log may show one like it. Raises BackendError: what no log takes is neither kept nor a proof."""
    if len(page.entries) > PAGE or any(not 0 < len(raw) <= MAX_ENTRY for raw in page.entries):
        raise BackendError(
            f"log {address} shows an entry of impossible size, or too many at once: its server is broken or hostile"
        )
    return page


class Stale(FractalError):
    """An entry was not sent, as the log moved on and nobody wants it any more. Nothing was changed."""

    code = "stale"


@dataclass(slots=True, eq=False)
class _Pending:
    """Our entry on its way."""

    outbox: Outbox
    wanted: Callable[[GroupState], bool] | None = None
    sent: bool = True
    """Whether it may be in the log."""
    position: int = 0
    """Where it was read back; 0: not yet."""
    reason: str = ""
    """Why the fold skipped it there."""
    wait: float = 0.0
    """Seconds that the log asked to wait when it was last tried."""


@dataclass(slots=True)
class _Folded:
    """A page, folded but not yet noted."""

    state: GroupState
    entries: dict[int, bytes] = field(default_factory=dict)
    position: int = 0
    """Where the entry that is on its way was found; 0: not in this page."""
    reason: str = ""


class _OtherHistory(Exception):
    """The entries so far do not lead to the checkpoint that the journal began with."""


class Journal:
    """The log of one group. Belongs to one event loop; reads and appends may be called from any task of it.

    `group_keys` are those that this device made or was welcomed with; they are noted with the first page. Building a
    journal reads the notes, and folds what they hold beyond the last noted state. Raises Corrupt if they have a gap.
    """

    def __init__(
        self,
        *,
        group: str,
        address: str,
        coordinator: Coordinator,
        keys: DeviceKeys,
        notes: Notes,
        clock: Clock,
        entropy: Entropy,
        group_keys: Mapping[int, bytes] | None = None,
        logger: logging.Logger | None = None,
    ) -> None:
        self.group = group
        self.address = address
        self.proof_sent: float | None = None
        """Boot time at which the request was sent of the last read that reached the log's head and could be folded."""
        self._coordinator = coordinator
        self._keys = keys
        self._notes = JournalNotes(notes, group)
        self._clock = clock
        self._entropy = entropy
        self._logger = logger or logging.getLogger(__name__)
        self._reading = asyncio.Lock()
        self._appending = asyncio.Lock()
        self._current = False
        """Whether the head was reached since this journal was built."""
        if group_keys:
            self._notes.add_keys(group_keys)
        self._opener = GroupOpener(keys, self._notes.group_keys())
        self._cursor = self._notes.cursor()
        self._base = self._notes.base()
        self._saved = 0
        """Position of the noted state."""
        self._state = self._refold()
        outbox = self._notes.outbox()
        self._pending = _Pending(outbox) if outbox else None
        self._long_poll: asyncio.Timeout | None = None
        self._interrupted = False
        self._hurried = 0
        """How many want a read of now."""
        self.news: Callable[[], None] = lambda: None
        """Called when something more was read, whoever asked for it: also who appends reads on until the entry is there."""
        self.heard: Callable[[bool], None] = lambda _: None
        """Called with whether a read was answered in time, whoever asked for it. One that made room for another says nothing."""

    @property
    def state(self) -> GroupState:
        """What the log says, as far as it was read."""
        return self._state

    @property
    def opener(self) -> GroupOpener:
        """What this device can unseal."""
        return self._opener

    @property
    def pending(self) -> bool:
        """Whether an entry of ours is on its way."""
        return self._pending is not None

    def group_key(self, generation: int | None = None) -> tuple[int, bytes]:
        """A generation, the present one unless told, and its group key. Raises Denied if this device has none."""
        wanted = self._state.generation if generation is None else generation
        key = self._opener.group_key(self._state, wanted)
        if key is None:
            raise Denied(f"this device has no key of generation {wanted} of group {self.group}")
        return wanted, key

    def add_keys(self, group_keys: Mapping[int, bytes]) -> None:
        """Note more group keys, and fold again from where an entry could not be unsealed."""
        self._notes.add_keys(group_keys)
        self._opener.add(group_keys)
        if self._state.sealed_out:
            self._state = self._refold()

    def entries(self, *, after: int = 0) -> list[tuple[int, bytes]]:
        """Every raw entry read so far beyond position `after`, with its position."""
        return self._notes.entries(after)

    def show(self, *, after: int = 0) -> list[Mapping[str, Any]]:
        """Entries for people: position, author, kind, body as far as this device may read them, and why one was skipped.

        Nothing is verified. Bodies hold keys and credentials: whoever prints them leaves those out.
        """
        skipped = dict(self._state.skips)
        return [
            {"position": at, "author": author, "kind": kind, "body": body, "skipped": skipped.get(at, "")}
            for at, raw in self.entries(after=after)
            for author, kind, body in [self._opener.peek(raw, self._state)]
        ]

    # --- reading -----------------------------------------------------------------------------------------------------

    async def poll(self, wait: float) -> bool:
        """Read on, after waiting up to `wait` seconds for something new; True if there was something.

        Also sends once more what an earlier append, or an earlier run of the agent, left on its way. Raises BackendError
        (retryable for a time-out); what was read before it is kept.
        """
        if wait:
            async with self._reading:
                changed = await self._read(wait)
        else:
            changed = await self._read_now()
        if self._pending is not None and not self._appending.locked():
            async with self._appending:
                await self._nudge()
        return changed

    async def _read(self, wait: float) -> bool:
        """Read up to the head, or as many pages as one call may. The caller holds the lock."""
        changed = False
        for _ in range(MAX_PAGES):
            sent = self._clock.boottime()
            try:
                page = await self._page(wait)
            except BackendError:
                self.heard(False)
                raise
            if page is None:
                break
            self.heard(True)
            self._accept(page)
            changed |= bool(page.entries)
            wait = 0.0
            if page.head:
                self._current = True
                state = self._state
                if state.generation and not (state.sealed_out or state.left):
                    self.proof_sent = sent
                break
            if not page.entries:
                break
        return changed

    async def _page(self, wait: float) -> Page | None:
        """A page; None if a long poll was given up, or not begun, because somebody wants a read of now."""
        if wait and self._hurried:
            return None
        limit = self._limit(wait)
        self._interrupted = False
        try:
            async with asyncio.timeout(limit) as scope:
                self._long_poll = scope if wait else None
                page = await self._coordinator.read(self.address, self._cursor, limit=PAGE, wait=wait)
                return checked(page, self.address)
        except TimeoutError as error:
            if self._interrupted:
                return None
            raise BackendError(
                f"log {self.address} did not answer within {limit:g} s", retryable=True
            ) from error
        finally:
            self._long_poll = None

    def _limit(self, wait: float) -> float:
        """Seconds after which a read is given up: so early that a challenge which came when it had begun to hang can be answered."""
        timers = self._state.timers
        usual, in_time = wait + timers.read_timeout / 1000, timers.answer_window / 1000 - ANSWERING
        return min(usual, in_time) if in_time > wait else usual

    async def _read_now(self) -> bool:
        """Read what there is, before any long poll: one under way ends, and none begins while somebody waits here."""
        self._hurried += 1
        self._interrupt()
        try:
            async with self._reading:
                return await self._read(0.0)
        finally:
            self._hurried -= 1

    def _interrupt(self) -> None:
        """End a long poll under way: its answer would be older than what the caller needs, and it holds the lock."""
        scope, self._long_poll = self._long_poll, None
        if scope is not None and not scope.expired():
            self._interrupted = True
            scope.reschedule(asyncio.get_running_loop().time())

    def _accept(self, page: Page) -> None:
        """Note the page and all that follows from it in one write, then believe it."""
        try:
            folded = self._fold_page(page)
        except _OtherHistory:
            self._forget_base()
            folded = self._fold_page(page)
        state, pending = folded.state, self._pending
        if page.entries:
            whole = bool(state.generation) and not state.sealed_out
            save = whole and state.position - self._saved >= SAVE_EVERY
            noted = state if save else None
            self._notes.accept(folded.entries, page.cursor, state=noted, delivered=folded.position > 0)
            self._saved = state.position if save else self._saved
        self._state, self._cursor = state, page.cursor
        if pending is not None and folded.position:
            pending.position, pending.reason = folded.position, folded.reason
            self._pending = None
        if page.entries:
            self.news()

    def _fold_page(self, page: Page) -> _Folded:
        folded = _Folded(self._state)
        for raw in page.entries:
            folded.state = self._step(folded.state, raw)
            folded.entries[folded.state.position] = raw
            if self._pending is not None and not folded.position and raw == self._pending.outbox.raw:
                folded.position, folded.reason = folded.state.position, _refusal(folded.state)
        return folded

    # --- folding -----------------------------------------------------------------------------------------------------

    def _step(self, state: GroupState, raw: bytes) -> GroupState:
        base = self._base
        if base is None or state.position >= base.position:
            return fold(state, raw, self._opener)
        state = count(state, raw)
        if state.position < base.position:
            return state
        if state.head == base.head:
            return base
        raise _OtherHistory

    def _forget_base(self) -> None:
        base = self._base
        self._logger.error(
            "log %s is not the one that the checkpoint at position %d was made of: folding it from its beginning",
            self.address,
            base.position if base else 0,
        )
        self._base = None
        self._notes.set_base(None)
        self._state = self._refold()

    def _refold(self) -> GroupState:
        """What the notes say: the noted state if it is of use, and every noted entry beyond it folded."""
        try:
            state = self._notes.state()
        except InvalidInput:
            # Derived from the entries, so it is made again rather than mourned.
            self._logger.warning("the noted state of group %s is damaged: folding its log again", self.group)
            state = None
        self._saved = state.position if state else 0
        state = state or GroupState(id=self.group)
        for _, raw in self._notes.entries(state.position):
            state = self._step(state, raw)
        return state

    def adopt(self, checkpoint: bytes, expected: bytes) -> None:
        """Begin with a checkpoint whose hash a trusted device stated, so that entries up to it need no folding.

        They are still read and hashed: if they do not lead to the checkpoint's running hash, the log is folded from its
        beginning. Raises Corrupt if the bytes are not that checkpoint, Denied if this journal has read anything.
        """
        if self._state.position:
            raise Denied(f"the log of group {self.group} was read already: a checkpoint is for a new device")
        base = state_from_checkpoint(checkpoint, expected)
        if base.id != self.group:
            raise Corrupt(f"a checkpoint of group {base.id}, not of {self.group}")
        self._notes.set_base(checkpoint, expected)
        self._base = base

    # --- writing -----------------------------------------------------------------------------------------------------

    async def append(
        self, entry: Entry, *, wanted: Callable[[GroupState], bool] | None = None, timeout: float = 30.0
    ) -> int:
        """Seal, send and read back an entry; its position in the log. One at a time per journal.

        `wanted` is asked of the latest state before each attempt, until the entry may be in the log. Raises Stale if it
        says no, Denied with the fold's reason if the entry was skipped, Ambiguous if `timeout` seconds passed with the
        entry on its way (it is sent on by `poll`), BackendError if it was surely not sent.
        """

        def seal() -> bytes:
            state = self._state
            if wanted is not None and not wanted(state):
                raise Stale("the log moved on: the entry is not wanted any more")
            self._require_writable(state)
            _, key = self.group_key()
            return seal_entry(entry, state=state, keys=self._keys, group_key=key, entropy=self._entropy)

        return await self._deliver(seal, wanted, timeout)

    async def append_raw(self, raw: bytes, *, timeout: float = 30.0) -> int:
        """Like `append`, for bytes that are sealed already: a first entry, a welcome."""
        return await self._deliver(lambda: raw, None, timeout)

    def _require_writable(self, state: GroupState) -> None:
        if state.left:
            raise Denied(f"this device was removed from group {state.name!r}")
        if state.sealed_out:
            raise Denied(
                f"entry {state.sealed_out} of group {state.name!r} cannot be unsealed on this device"
            )

    async def _deliver(
        self, seal: Callable[[], bytes], wanted: Callable[[GroupState], bool] | None, timeout: float
    ) -> int:
        try:
            async with asyncio.timeout(timeout), self._appending:
                if self._pending is not None:
                    await self._finish(self._pending)
                if not self._current:
                    await self._read_now()
                reason = ""
                for _ in range(MAX_SEALS):
                    pending = self._prepare(seal(), wanted)
                    await self._push(pending)
                    reason = pending.reason
                    if not reason:
                        return pending.position
                    if reason != OLD_GENERATION:
                        break
        except TimeoutError as error:
            if self._pending is not None:
                raise Ambiguous(
                    f"log {self.address} did not show an entry within {timeout:g} s; it is sent on until it does"
                ) from error
            raise BackendError(
                f"log {self.address} did not take an entry within {timeout:g} s; nothing was sent",
                retryable=True,
            ) from error
        raise Denied(f"the group skipped the entry: {reason}")

    def _prepare(self, raw: bytes, wanted: Callable[[GroupState], bool] | None) -> _Pending:
        outbox = Outbox(raw, self._entropy.bytes(16).hex())
        self._notes.set_outbox(outbox)
        pending = _Pending(outbox, wanted, sent=False)
        self._pending = pending
        return pending

    async def _push(self, pending: _Pending) -> None:
        """Send until read back. Raises Stale, or what the coordinator raised for good; bounded by the caller's time-out."""
        pause = FIRST_PAUSE
        while not pending.position:
            if not pending.sent and pending.wanted is not None and not pending.wanted(self._state):
                self._drop(pending)
                raise Stale("the log moved on while the entry waited: it is not wanted any more")
            if await self._attempt(pending):
                return
            await self._clock.sleep(pending.wait + pause * self._entropy.uniform(0.75, 1.25))
            pause = min(2 * pause, LONGEST_PAUSE)
            if not pending.sent:
                await self._read_quietly(pending)

    async def _attempt(self, pending: _Pending) -> bool:
        """Send once and look for it; whether it was read back. Raises what is not worth repeating."""
        before, pending.sent, pending.wait = pending.sent, True, 0.0
        try:
            # One that hangs holds up an answer; to send again what arrived does no harm.
            async with asyncio.timeout(self._state.timers.read_timeout / 1000):
                await self._coordinator.append(self.address, pending.outbox.token, pending.outbox.raw)
        except (Ambiguous, TimeoutError):
            self._logger.debug("log %s: append is ambiguous", self.address)
        except FractalError as error:
            pending.sent = before
            if isinstance(error, BackendError) and error.retryable:
                pending.wait = min(error.wait, LONGEST_WAIT)
                self._logger.debug("log %s: %s", self.address, error)
                return False
            if before:
                raise Ambiguous(f"an entry that may be in log {self.address}: {error}") from error
            self._drop(pending)
            raise
        await self._read_quietly(pending)
        return bool(pending.position)

    async def _read_quietly(self, pending: _Pending) -> None:
        """Look once for the entry; a log that cannot be read just now is no reason to give up."""
        if pending.position:
            return  # read before the log said that it has it: whoever reads now waits for what comes after it
        try:
            async with self._reading:
                # Another task may have read it while we waited for the lock.
                if not pending.position:
                    await self._read(0.0)
        except BackendError as error:
            if not error.retryable:
                raise
            self._logger.debug("log %s: %s", self.address, error)

    async def _finish(self, pending: _Pending) -> None:
        """Bring what an earlier call or run left on its way to its end, whatever that is."""
        try:
            await self._push(pending)
        except Stale:
            return
        if pending.reason:
            self._logger.warning("log %s: an earlier entry was skipped: %s", self.address, pending.reason)

    async def _nudge(self) -> None:
        """One more attempt for what is on its way; the next poll makes another."""
        pending = self._pending
        if pending is None:
            return
        if not pending.sent and pending.wanted is not None and not pending.wanted(self._state):
            self._drop(pending)
            return
        try:
            await self._attempt(pending)
        except FractalError as error:
            self._logger.warning("log %s: an entry is still on its way: %s", self.address, error)

    def _drop(self, pending: _Pending) -> None:
        """Forget an entry that surely is not in the log."""
        self._notes.set_outbox(None)
        if self._pending is pending:
            self._pending = None


def _refusal(state: GroupState) -> str:
    """Why the last entry that `state` counts changed nothing; "" if it did what it says."""
    if state.sealed_out:
        return f"entry {state.sealed_out} before it could not be unsealed"
    return skipped_because(state)


__all__ = ["Journal", "Stale", "key_notes"]
