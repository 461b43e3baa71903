"""Following the logs of an app that runs on another device: its last lines, asked for again and again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fractal.agent.control.progress import Progress
from fractal.agent.group import GroupAgent
from fractal.agent.remote import Collected, ask
from fractal.core.lease import seconds
from fractal.core.model import App

TAIL = 200
"""Lines of each service that are asked for; what is printed beyond that between two questions is not seen."""


async def follow_there(group: GroupAgent, app: App, service: str, tail: int, progress: Progress) -> None:
    """Pass on what the app prints, one question a beat, until the caller hangs up. Raises what the other device answers."""
    seen: dict[str, list[str]] = {}
    while True:
        collected = Collected()
        wanted = {"group": group.id, "app": app.id, "service": service, "tail": TAIL}
        await ask(group, group.app(app.id).owner, "app.logs", wanted, collected)
        for name, lines in by_service(collected.records()).items():
            fresh = beyond(seen[name], lines) if name in seen else lines[-tail:]
            for line in fresh:
                await progress.output({"service": name, "line": line})
            seen[name] = lines
        await group.agent.clock.sleep(seconds(group.state.timers.beat))


def by_service(records: Sequence[Mapping[str, object]]) -> dict[str, list[str]]:
    """Lines by service, oldest first."""
    found: dict[str, list[str]] = {}
    for record in records:
        found.setdefault(str(record["service"]), []).append(str(record["line"]))
    return found


def beyond(before: Sequence[str], now: Sequence[str]) -> Sequence[str]:
    """What `now` has beyond `before`, where the beginning of `now` is the end of `before` as far as they overlap."""
    for overlap in range(min(len(before), len(now)), 0, -1):
        if list(before[-overlap:]) == list(now[:overlap]):
            return now[overlap:]
    return now
