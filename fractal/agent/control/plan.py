"""What a changing command is going to do, as a value: `--dry-run` prints the very plan that would run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from fractal.agent.control.progress import Progress


async def _nothing(_: Progress) -> None:
    """For an action that only tells what follows from another one."""


def _empty() -> Mapping[str, object]:
    return {}


@dataclass(frozen=True, slots=True)
class Action:
    """One step."""

    what: str
    """In plain words, with names."""
    detail: Mapping[str, str] = field(default_factory=dict)
    do: Callable[[Progress], Awaitable[object]] = field(default=_nothing, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Plan:
    """Actions in order. Making a plan reads; only `carry_out` changes anything."""

    actions: tuple[Action, ...]
    result: Callable[[], Mapping[str, object]] = field(default=_empty, repr=False, compare=False)
    """Called after the last action: the command's own result fields."""

    def to_plain(self, *, dry_run: bool) -> dict[str, object]:
        """The fields `dry_run` and `plan` of the answer."""
        steps = [{"what": a.what, "detail": dict(a.detail)} for a in self.actions]
        return {"dry_run": dry_run, "plan": steps}

    async def carry_out(self, progress: Progress) -> dict[str, object]:
        """Do it. The first action that fails ends it; what was done before stays done and the error says where it stopped."""
        for action in self.actions:
            progress.say(action.what)
            await action.do(progress)
        return {**self.to_plain(dry_run=False), **self.result()}


def plan(
    *actions: Action, result: Callable[[], Mapping[str, object]] | Mapping[str, object] | None = None
) -> Plan:
    """A plan out of actions and either result fields known beforehand or a function that gives them afterwards."""
    if result is None:
        return Plan(actions)
    if callable(result):
        return Plan(actions, result)
    fixed = dict(result)
    return Plan(actions, lambda: fixed)
