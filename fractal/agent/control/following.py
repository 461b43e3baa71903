"""Showing the logs of an app: as its runtime streams them here; from another device its last lines, asked for again and again."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from fractal.agent.control.progress import Progress
from fractal.agent.group import GroupAgent
from fractal.agent.remote import Collected, ask
from fractal.api.runtime import Runtime
from fractal.core.lease import seconds
from fractal.core.model import App

TAIL = 200
"""Lines of each service that are asked for; what is printed beyond that between two questions is not seen."""


async def show(
    runtime: Runtime, key: str, service: str, progress: Progress, *, tail: int, follow: bool = False
) -> int:
    """Pass on what a service of a run here prints; how many lines that were. Raises NotFound, BackendError."""
    lines, rest = 0, b""
    async for chunk in runtime.logs(key, service, tail=tail, follow=follow):
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            lines += 1
            await progress.output({"service": service, "line": line.decode("utf-8", "replace")})
    if rest:
        lines += 1
        await progress.output({"service": service, "line": rest.decode("utf-8", "replace")})
    return lines


async def follow_here(
    runtime: Runtime, key: str, services: Sequence[str], tail: int, progress: Progress
) -> int:
    """The same for several services at once, live, until all of them have ended. Raises what the first one to fail raises."""
    followed = [
        asyncio.create_task(show(runtime, key, s, progress, tail=tail, follow=True)) for s in services
    ]
    try:
        return sum(await asyncio.gather(*followed))
    finally:
        for task in followed:
            task.cancel()
        await asyncio.gather(*followed, return_exceptions=True)


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
