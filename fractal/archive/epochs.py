"""Epochs: create-only objects in an app's store. Creating number n is the lock, n is the fencing token.

The rules are those of docs/explanation/failover.md, section 2. What stands in the store is the same for everybody; what a
reader concludes from it depends only on the log.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import groupby, islice

from fractal.api.canonical import Value
from fractal.api.context import Clock, Entropy
from fractal.api.errors import Conflict, Corrupt, InvalidInput, NotFound
from fractal.api.plain import from_plain, to_plain
from fractal.api.store import Store
from fractal.archive import layout
from fractal.archive.expected import MOST_IN_DOUBT, Expected, Name, Notes, Rollback
from fractal.archive.sealed import (
    GroupKey,
    SignKeyOf,
    at_once,
    create,
    listed,
    open_statement,
    read_small,
    seal_statement,
)
from fractal.core.chain import EMPTY
from fractal.core.model import Point, Timers
from fractal.crypto.keys import DeviceKeys

__all__ = ["MAX_LEAP", "EpochRecord", "Epochs", "Notes", "Rollback"]

MAX_LEAP = 1_000
"""Epochs by which one may be above all that are known: `core.fold_lease.MAX_LEAP`, so that each can be announced."""
MAX_LISTED = 1_000_000
LARGEST = 4096
"""Bytes of an epoch's object: ten times what it takes. What is larger is none."""
AGAIN = 60.0
"""Seconds after which what was read and is no valid epoch may be read again: the store may have been mended."""
A_FEW = 8
"""So many of these at one listing, so that any number of them costs each listing the same."""
MOST_KEPT = 10_000
"""So many of them are kept to be judged again: the log may tell who signed them."""


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
        announced: Callable[[str], int | None] = lambda _: 0,
    ) -> None:
        """`announced` gives the highest epoch of an app that the log tells of, None if it knows no such app: what stands in
        the store under that name is nobody's business. `sign_key_of` also knows removed devices. With `notes`, what was listed is remembered across restarts under
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
        self._expected = Expected(group=group, store=name, clock=clock, notes=notes)
        self._raw: dict[Name, tuple[bytes, float]] = {}
        """What was read and is no valid epoch so far, with when it was read (boottime); the longest ago first."""
        self._parsed: dict[Name, EpochRecord] = {}
        self._bases: dict[Name, Point] = {}

    # --- reading -------------------------------------------------------------------------------------------------

    async def listing(self) -> dict[str, dict[int, EpochRecord]]:
        """Every app's epochs, by one listing that is sent now: it proves, from the moment of this call, that there is none above.

        Raises Rollback if it lacks what an earlier one showed, BackendError; both mean that nothing is proved.
        """
        expected = (
            self._expected.names()
        )  # one that is created while the listing is under way may be missing in it
        shown: set[Name] = set()
        judged = False
        try:
            async for text in listed(self._store, layout.epochs_prefix(self._group), MAX_LISTED):
                key = layout.parse_epoch_key(self._group, text)
                if key is not None and not key.base and self._concerns((key.app, key.epoch), expected):
                    shown.add((key.app, key.epoch))
            prefix = layout.epochs_prefix(self._group)
            self._expected.check(expected, frozenset(shown), self._store.staleness, prefix)
            result = await self._judged(sorted(shown))
            judged = True
        finally:
            if not judged:
                # Also what a listing showed that proves nothing, or whose objects cannot be read now: the next may hide just that.
                self._expected.note(valid=shown & self._parsed.keys(), doubt=self._in_doubt(sorted(shown)))
        self._note(shown, result)
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
        self._keep((app, epoch), data)
        record = self._parse(app, epoch)
        if record.burnt:
            self._expected.note(doubt=[(app, epoch)])
        else:
            self._expected.note(valid=[(app, epoch)])
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

    def _concerns(self, name: Name, expected: frozenset[Name]) -> bool:
        return name in expected or self._announced(name[0]) is not None

    async def _judged(self, names: list[Name]) -> dict[str, dict[int, EpochRecord]]:
        """The epochs that count, of these names, in order; what is not known yet is read."""
        await self._read([n for n in islice(self._raw, A_FEW) if n in names and self._old(n)])
        result, unread = self._counting(names)
        while unread:
            await self._read(unread)
            result, unread = self._counting(names)
        return result

    def _counting(self, names: list[Name]) -> tuple[dict[str, dict[int, EpochRecord]], list[Name]]:
        """As far as it was read, and what must be read to tell."""
        result: dict[str, dict[int, EpochRecord]] = {}
        unread: list[Name] = []
        for app, of_app in groupby(names, key=lambda name: name[0]):
            known = result.setdefault(app, {})
            last, announced = 0, self._announced(app) or 0
            for name in of_app:
                epoch = name[1]
                # Ours are created without gaps, but for what was announced and is not there. Without this a member, or a removed
                # device with old credentials, could use up all numbers, or stop an app with one that nobody can announce.
                if epoch > max(last, announced) + MAX_LEAP:
                    break
                record = self._parsed.get(name)
                if record is None:
                    if name not in self._raw:
                        unread.append(name)
                        continue
                    record = self._parse(app, epoch)
                if not record.burnt or epoch == last + 1:
                    known[epoch] = record
                    last = epoch
        return result, unread

    def _in_doubt(self, names: list[Name]) -> list[Name]:
        """Names that were not read and by which an epoch may stand that counts: the next ones above what is known."""
        found: list[Name] = []
        for app, of_app in groupby(names, key=lambda name: name[0]):
            known = max(self._expected.highest(app), self._announced(app) or 0)
            last, count = known, 0
            for name in of_app:
                if name[1] > last + MAX_LEAP or count == MOST_IN_DOUBT:
                    break
                last = max(last, name[1])
                if name[1] > known and name not in self._parsed and name not in self._raw:
                    found.append(name)
                    count += 1
        return found

    def _note(self, shown: set[Name], result: dict[str, dict[int, EpochRecord]]) -> None:
        """What a listing proved is expected of later ones."""
        valid, doubt = set[Name](), set[Name]()
        for app, known in result.items():
            valid |= {(app, epoch) for epoch, record in known.items() if not record.burnt}
            # The log, or a store that is mended, may tell later that it is one.
            doubt |= set([(app, epoch) for epoch in sorted(known) if known[epoch].burnt][-MOST_IN_DOUBT:])
        self._expected.note(valid=valid, doubt=doubt, settled=shown - valid - doubt)
        for name in [n for n in self._raw if n not in shown]:
            del self._raw[name]  # somebody removed it

    def _old(self, name: Name) -> bool:
        return self._clock.boottime() - self._raw[name][1] >= AGAIN

    async def _read(self, names: list[Name]) -> None:
        """Have the bytes of these, several at once. Raises Rollback if one is not there, BackendError."""
        waiting = names[::-1]

        async def read() -> None:
            while waiting:
                app, epoch = name = waiting.pop()
                key = layout.epoch_key(self._group, app, epoch)
                try:
                    data = await read_small(self._store, key, LARGEST)
                except Corrupt:
                    data = b""
                except NotFound as error:
                    raise Rollback(
                        f"{key} was listed and is not there: the store proves nothing", retryable=True
                    ) from error
                self._keep(name, data)

        await at_once(read, len(names))

    def _keep(self, name: Name, data: bytes) -> None:
        self._raw.pop(name, None)
        self._raw[name] = (data if len(self._raw) < MOST_KEPT else b"", self._clock.boottime())

    def _parse(self, app: str, epoch: int) -> EpochRecord:
        """The record, or why it is burnt. A valid one stays valid; others are judged again, as the log may tell more."""
        if (app, epoch) in self._parsed:
            return self._parsed[app, epoch]
        key = layout.epoch_key(self._group, app, epoch)
        try:
            said = open_statement(
                "archive-epoch",
                key,
                self._raw[app, epoch][0],
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
            owned = layout.epoch_key(self._group, app, epoch)
            self._keep((app, epoch), await read_small(self._store, owned, LARGEST))
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
