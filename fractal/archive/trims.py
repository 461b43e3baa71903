"""A trim: one signed decision about what of an archive may go, and which merges stand in for it.

Each says everything that those before it said, but for what was pinned meanwhile and still stands, so that only the newest counts and
the others can go. It counts if the
owner of the epoch that it names signed it and the moment that it was made at lies on the main line; of these the newest of
the highest epoch. What it lets go is in nobody's way from then on, and leaves the store much later (`collect.py`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from fractal.api.canonical import Value
from fractal.api.errors import Corrupt, InvalidInput
from fractal.api.plain import from_plain
from fractal.core.model import Point
from fractal.core.retention import Slot

KIND = "archive-trim"
Span = tuple[int, int]
"""Numbers from the first to the last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelRef:
    """Names one merge, exactly."""

    point: Point
    level: int
    hash: bytes
    """Of its record."""

    @property
    def slot(self) -> Slot:
        """Its name."""
        return self.point, self.level


@dataclass(frozen=True, slots=True, kw_only=True)
class TrimBody:
    """What a trim says."""

    epoch: int
    """Whose owner decided."""
    upto: Point
    """The newest moment of the main line that it was decided by."""
    gone: Mapping[str, tuple[Span, ...]] = field(default_factory=dict)
    """Epoch, as text -> numbers whose own records may go or are gone."""
    levels: tuple[LevelRef, ...] = ()
    """Merges that were read back and found whole: these count."""
    wall_ms: int = 0
    """A label."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trim:
    """A valid trim."""

    number: int
    body: TrimBody
    device: str

    def covers(self, point: Point) -> bool:
        """Whether the moment's own record was let go."""
        found = self.body.gone.get(str(point.epoch), ())
        index = bisect_right(found, point.number, key=lambda span: span[0]) - 1
        return index >= 0 and found[index][1] >= point.number

    def uncovered(self, epoch: int, first: int, last: int) -> Iterable[Span]:
        """The numbers from `first` to `last` that were not let go."""
        for begin, end in self.body.gone.get(str(epoch), ()):
            if end < first:
                continue
            if begin > last:
                break
            if begin > first:
                yield first, begin - 1
            first = end + 1
        if first <= last:
            yield first, last


def trim_of(
    key: str, number: int, device: str, body: Value, owner_of: Callable[[int], str | None] | None
) -> Trim:
    """The trim out of a statement that stood under `key`. Raises Corrupt."""
    try:
        said = from_plain(TrimBody, body)
        _check(said)
    except (InvalidInput, ValueError) as error:
        raise Corrupt(f"{key}: {error}") from error
    # Unlike a record, of which its epoch's base tells whether it matters, a trim must not count on nobody's word.
    if owner_of is not None and owner_of(said.epoch) != device:
        raise Corrupt(f"{key}: written by {device}, which does not own epoch {said.epoch}")
    return Trim(number=number, body=said, device=device)


def spans(numbers: Iterable[int], before: Sequence[Span] = ()) -> tuple[Span, ...]:
    """The numbers, and those of `before`, as few spans as can be, in order."""
    result: list[Span] = []
    for first, last in sorted([*before, *((n, n) for n in numbers)]):
        if result and first <= result[-1][1] + 1:
            result[-1] = (result[-1][0], max(last, result[-1][1]))
        else:
            result.append((first, last))
    return tuple(result)


def joined(before: Mapping[str, tuple[Span, ...]], points: Collection[Point]) -> dict[str, tuple[Span, ...]]:
    """What was gone before and what goes now."""
    epochs = {int(epoch) for epoch in before} | {p.epoch for p in points}
    return {
        str(e): spans([p.number for p in points if p.epoch == e], before.get(str(e), ()))
        for e in sorted(epochs)
    }


def without(before: Mapping[str, tuple[Span, ...]], points: Collection[Point]) -> dict[str, tuple[Span, ...]]:
    """What was gone before, except for these points."""
    left: dict[str, tuple[Span, ...]] = {}
    for epoch, found in before.items():
        back = sorted({p.number for p in points if str(p.epoch) == epoch})
        pieces: list[Span] = []
        for first, last in found:
            for number in back:
                if first <= number <= last:
                    pieces.append((first, number - 1))
                    first = number + 1
            pieces.append((first, last))
        if pieces := [span for span in pieces if span[0] <= span[1]]:
            left[epoch] = tuple(pieces)
    return left


def _check(body: TrimBody) -> None:
    if body.epoch < 1 or not 0 < body.upto.epoch <= body.epoch or body.upto.number < 1:
        raise InvalidInput("a trim of no epoch or moment")
    for epoch, found in body.gone.items():
        if not epoch.isdecimal() or not 0 < int(epoch) <= body.epoch:
            raise InvalidInput(f"lets go of an epoch {epoch[:20]!r} that is not its own or earlier")
        last = 0
        for begin, end in found:
            if not last < begin <= end:
                raise InvalidInput("numbers that are not in order")
            last = end
    for ref in body.levels:
        if not 1 <= ref.level <= 3 or len(ref.hash) != 32 or ref.point.number < 1:
            raise InvalidInput("names something that is no merge")
