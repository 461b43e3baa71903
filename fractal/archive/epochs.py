"""Epochs: create-only objects in an app's store. Creating number n is the lock, n is the fencing token.

The rules are those of docs/explanation/failover.md, section 2. What stands in the store is the same for everybody; what a
reader concludes from it depends only on the log.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from fractal.api.canonical import Value
from fractal.api.context import Clock, Entropy
from fractal.api.errors import BackendError, Conflict, Corrupt, ExitCode, InvalidInput, NotFound
from fractal.api.plain import from_plain, to_plain
from fractal.api.store import Store
from fractal.archive import layout
from fractal.archive.sealed import (
    GroupKey,
    SignKeyOf,
    create,
    listed,
    open_statement,
    read_small,
    seal_statement,
)
from fractal.core.chain import EMPTY
from fractal.core.model import Point, Timers
from fractal.crypto.keys import DeviceKeys

MAX_LEAP = 1_000
"""Epochs by which one may be above all that are known: `core.fold_lease.MAX_LEAP`, so that each can be announced."""
MAX_LISTED = 1_000_000


class Rollback(BackendError):
    """A store no longer shows what it once showed: it was rolled back, or hides something. What it shows proves nothing."""

    exit_code = ExitCode.CONFLICT
    code = "rollback"


class Notes(Protocol):
    """The part of the agent's durable memory that the archive uses."""

    def get(self, key: str) -> bytes | None:
        """The value, None if there is none."""

    def scan(self, prefix: str) -> list[tuple[str, bytes]]:
        """Every key that begins with `prefix`, with its value."""

    def write(self, changes: Mapping[str, bytes | None]) -> None:
        """Atomic and durable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRecord:
    """An epoch as it stands in the store."""

    app: str
    epoch: int
    owner: str = ""
    """Device that created it; "" if it is burnt: nobody may run it, and the next number is used."""
    proof_ms: int = 0
    """F that its owner runs under; 0 if burnt."""
    margin_ms: int = 0
    burnt: str = ""
    """Why nobody may run it."""
    acknowledged: float | None = field(default=None, compare=False)
    """When this device knew that its own `create` had succeeded (boottime); None in listings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Epoch:
    app: str
    epoch: int
    proof: int
    margin: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Base:
    app: str
    epoch: int
    base: Point


class Epochs:
    """All epochs of a group in one store."""

    def __init__(
        self,
        *,
        group: str,
        store: Store,
        keys: DeviceKeys,
        group_key: GroupKey,
        sign_key_of: SignKeyOf,
        clock: Clock,
        entropy: Entropy,
        notes: Notes | None = None,
        name: str = "",
        announced: Callable[[str], int] = lambda _: 0,
    ) -> None:
        """`announced` gives the highest epoch of an app that the log tells of. `sign_key_of` also knows removed devices. With `notes`, what was listed is remembered across restarts under
        `name`, the store's id.
        """
        self._group = group
        self._store = store
        self._keys = keys
        self._group_key = group_key
        self._sign_key_of = sign_key_of
        self._clock = clock
        self._entropy = entropy
        self._announced = announced
        self._notes = notes
        self._note = f"archive/{group}/epochs/{name}"
        self._raw: dict[tuple[str, int], bytes] = {}
        self._parsed: dict[tuple[str, int], EpochRecord] = {}
        self._bases: dict[tuple[str, int], Point] = {}
        self._seen: dict[tuple[str, int], float] = self._recall()
        self._void: set[tuple[str, int]] = set()
        """Names that were shown, and whose objects do not count."""

    # --- reading -------------------------------------------------------------------------------------------------

    async def listing(self) -> dict[str, dict[int, EpochRecord]]:
        """Every app's epochs, by one listing that is sent now: it proves, from the moment of this call, that there is none above.

        Raises Rollback if it lacks what an earlier one showed, BackendError; both mean that nothing is proved.
        """
        seen = set(self._seen)  # an epoch that is created while the listing is under way may be missing in it
        shown: set[tuple[str, int]] = set()
        try:
            async for name in listed(self._store, layout.epochs_prefix(self._group), MAX_LISTED):
                key = layout.parse_epoch_key(self._group, name)
                if key is not None and not key.base:
                    shown.add((key.app, key.epoch))
        finally:
            # Also what a listing showed that proves nothing, or whose objects cannot be read now: the next may hide just that.
            self._remember(self._plausible(shown - self._seen.keys() - self._void))
        self._refuse_rollback(seen - shown)
        result: dict[str, dict[int, EpochRecord]] = {}
        for app, epoch in sorted(shown):
            known = result.setdefault(app, {})
            last = max(known, default=0)
            # Ours are created without gaps, but for what was announced and is not there. Without this a member, or a removed
            # device with old credentials, could use up all numbers, or stop an app with one that nobody can announce.
            if epoch > max(last, self._announced(app)) + MAX_LEAP:
                continue
            if (app, epoch) not in self._parsed:
                # What is not valid is read again each time: the log may have told more, or the store have been mended.
                self._raw[app, epoch] = await self._read(layout.epoch_key(self._group, app, epoch))
            record = self._parse(app, epoch)
            if not record.burnt or epoch == last + 1:
                known[epoch] = record
        counted = {(app, epoch) for app, known in result.items() for epoch in known}
        self._void = shown - counted
        self._remember(counted, forget=self._void)
        return result

    async def base(self, app: str, epoch: int) -> Point | None:
        """What an epoch starts from; None while nobody chose it, or if what stands there is not valid."""
        try:
            return await self._standing_base(app, epoch)
        except (NotFound, Corrupt):
            return None

    # --- writing -------------------------------------------------------------------------------------------------

    async def create(self, app: str, epoch: int, timers: Timers) -> EpochRecord:
        """Take an epoch. `acknowledged` of the result is when it was known to have succeeded.

        An epoch that this very device created before, and forgot, counts as created now: the full wait begins again.
        Raises Conflict naming who has it, Ambiguous if it stays unknown (repeat it), BackendError.
        """
        key = layout.epoch_key(self._group, app, epoch)
        body = to_plain(_Epoch(app=app, epoch=epoch, proof=timers.proof, margin=timers.margin))
        data = self._seal("archive-epoch", key, body)
        if not await create(self._store, key, lambda: data, self._clock):
            data = await read_small(self._store, key)
        self._raw[app, epoch] = data
        self._remember({(app, epoch)})
        record = self._parse(app, epoch)
        if record.owner != self._keys.id:
            raise Conflict(f"epoch {epoch} of app {app} is taken: {record.owner or record.burnt}")
        return replace(record, acknowledged=self._clock.boottime())

    async def create_base(self, app: str, epoch: int, point: Point) -> Point:
        """Choose what an own epoch starts from, once: returns the choice that stands, which may be an earlier one.

        Raises Corrupt if what stands is not valid: then this epoch cannot be used, the next one can.
        """
        if point.epoch >= epoch:
            raise InvalidInput(f"epoch {epoch} cannot start from epoch {point.epoch}")
        key = layout.base_key(self._group, app, epoch)
        data = self._seal("archive-base", key, to_plain(_Base(app=app, epoch=epoch, base=point)))
        await create(self._store, key, lambda: data, self._clock)
        return await self._standing_base(app, epoch)

    # --- details -------------------------------------------------------------------------------------------------

    def _seal(self, kind: str, key: str, body: Value) -> bytes:
        return seal_statement(
            kind, key, body, keys=self._keys, group_key=self._group_key, entropy=self._entropy
        )

    async def _read(self, key: str) -> bytes:
        try:
            return await read_small(self._store, key)
        except Corrupt:
            return b""
        except NotFound as error:
            raise Rollback(
                f"{key} was listed and is not there: the store proves nothing", retryable=True
            ) from error

    def _parse(self, app: str, epoch: int) -> EpochRecord:
        """The record, or why it is burnt. A valid one stays valid; others are judged again, as the log may tell more."""
        if (app, epoch) in self._parsed:
            return self._parsed[app, epoch]
        key = layout.epoch_key(self._group, app, epoch)
        try:
            said = open_statement(
                "archive-epoch",
                key,
                self._raw[app, epoch],
                sign_key_of=self._sign_key_of,
                group_key=self._group_key,
            )
            body = from_plain(_Epoch, said.body)
            if (body.app, body.epoch) != (app, epoch) or body.proof <= 0 or body.margin < 0:
                raise Corrupt(f"{key}: not what its name says")
        except (Corrupt, InvalidInput) as error:
            return EpochRecord(app=app, epoch=epoch, burnt=str(error))
        record = EpochRecord(app=app, epoch=epoch, owner=said.by, proof_ms=body.proof, margin_ms=body.margin)
        self._parsed[app, epoch] = record
        del self._raw[app, epoch]
        return record

    async def _standing_base(self, app: str, epoch: int) -> Point:
        if (app, epoch) in self._bases:
            return self._bases[app, epoch]
        key = layout.base_key(self._group, app, epoch)
        data = await read_small(self._store, key)
        if (app, epoch) not in self._parsed:
            self._raw[app, epoch] = await read_small(self._store, layout.epoch_key(self._group, app, epoch))
        said = open_statement(
            "archive-base", key, data, sign_key_of=self._sign_key_of, group_key=self._group_key
        )
        try:
            body = from_plain(_Base, said.body)
        except InvalidInput as error:
            raise Corrupt(f"{key}: {error}") from error
        point = body.base
        sound = 0 < point.epoch < epoch and point.number > 0
        if (body.app, body.epoch) != (app, epoch) or not (sound or point == EMPTY):
            raise Corrupt(f"{key}: not what its name says")
        if said.by != self._parse(app, epoch).owner:
            raise Corrupt(f"{key}: signed by {said.by}, which does not own the epoch")
        self._bases[app, epoch] = point
        return point

    def _refuse_rollback(self, missing: set[tuple[str, int]]) -> None:
        if not missing:
            return
        app, epoch = first = min(missing)
        key = layout.epoch_key(self._group, app, epoch)
        late = self._clock.boottime() - self._seen[first] < self._store.staleness
        if late:
            raise Rollback(f"the listing does not show {key} yet: it proves nothing", retryable=True)
        raise Rollback(
            f"{key} was in the store and is gone: the store was rolled back or hides it. Check the store."
        )

    def _plausible(self, names: set[tuple[str, int]]) -> set[tuple[str, int]]:
        """Names by which an epoch may stand that counts, as far as names tell."""
        highest: dict[str, int] = {}
        for app, epoch in self._seen if names else ():
            highest[app] = max(highest.get(app, 0), epoch)
        found = set()
        for app, epoch in sorted(names):
            last = max(highest.get(app, 0), self._announced(app))
            if epoch <= last + MAX_LEAP:
                highest[app] = max(last, epoch)
                found.add((app, epoch))
        return found

    def _remember(self, shown: set[tuple[str, int]], *, forget: Collection[tuple[str, int]] = ()) -> None:
        """Expect these in every later listing, and those no more that turned out not to count."""
        new = shown - self._seen.keys()
        gone = self._seen.keys() & forget
        if not new and not gone:
            return
        now = self._clock.boottime()
        self._seen.update(dict.fromkeys(new, now))
        for name in gone:
            del self._seen[name]
        if self._notes is not None:
            highest: dict[str, int] = {}
            for app, epoch in self._seen:
                highest[app] = max(highest.get(app, 0), epoch)
            text = " ".join(f"{app}:{epoch}" for app, epoch in sorted(highest.items()))
            self._notes.write({self._note: text.encode()})

    def _recall(self) -> dict[tuple[str, int], float]:
        text = (self._notes.get(self._note) if self._notes is not None else None) or b""
        found = {}
        for part in text.decode().split():
            app, _, epoch = part.partition(":")
            found[app, int(epoch)] = float("-inf")
        return found
