"""A real control server whose handlers answer with documented, made-up results: for tests of what talks to an agent."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fractal.agent.control.contract import PLAN, Items, Kind, Leaf, Nested, Shape, Spec
from fractal.agent.control.dispatch import Command
from fractal.agent.control.params import Params
from fractal.agent.control.plan import Action, Plan, plan
from fractal.agent.control.progress import Progress
from fractal.agent.control.server import open_control
from fractal.agent.control.specs import SPECS


def sample(shape: Shape) -> dict[str, Any]:
    """A document of that shape, with an awkward text in every text field."""
    values: dict[Kind, Any] = {
        Kind.TEXT: "Grüße \x1b[31m|",
        Kind.INTEGER: 3,
        Kind.NUMBER: 1.5,
        Kind.FLAG: True,
        Kind.LIST: ["one", "zwei"],
        Kind.TABLE: {"key": "value"},
    }
    made: dict[str, Any] = {}
    for name, want in shape.items():
        match want:
            case Leaf():
                made[name] = values[want.kind]
            case Nested():
                made[name] = sample(want.shape)
            case Items():
                made[name] = [sample(want.shape), empty(want.shape)]
    return made


def empty(shape: Shape) -> dict[str, Any]:
    """A document of that shape with nothing in it: null where that is allowed."""
    values: dict[Kind, Any] = {
        Kind.TEXT: "",
        Kind.INTEGER: 0,
        Kind.NUMBER: 0.0,
        Kind.FLAG: False,
        Kind.LIST: [],
        Kind.TABLE: {},
    }
    made: dict[str, Any] = {}
    for name, want in shape.items():
        match want:
            case Leaf():
                made[name] = None if want.null else values[want.kind]
            case Nested():
                made[name] = empty(want.shape)
            case Items():
                made[name] = []
    return made


@dataclass
class SampleAgent:
    """Notes every call and answers from `results`."""

    calls: list[tuple[str, Params]] = field(default_factory=list)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    errors: dict[str, Exception] = field(default_factory=dict)

    @property
    def last(self) -> tuple[str, dict[str, object]]:
        """Name and parameters of the last call."""
        name, params = self.calls[-1]
        return name, params.given()


def answering(spec: Spec) -> Command:
    """A command that answers with its documented result."""

    async def handler(agent: SampleAgent, params: Params, progress: Progress) -> Mapping[str, Any] | Plan:
        agent.calls.append((spec.name, params))
        progress.say("working")
        if spec.name in agent.errors:
            raise agent.errors[spec.name]
        if spec.output is not None:
            await progress.output(sample(spec.output))
        result = agent.results.get(spec.name) or sample(spec.result)
        if not spec.changes:
            return result
        own = {k: v for k, v in result.items() if k not in PLAN}
        return plan(Action("Do it", {"to": "Kitchen"}), result=own)

    return Command(spec, handler)


@contextmanager
def serving_samples(socket: Path) -> Iterator[SampleAgent]:
    """An agent that listens on `socket`, in a thread of its own, for the length of the context."""
    agent, ready, loop = SampleAgent(), threading.Event(), asyncio.new_event_loop()
    stop: list[asyncio.Event] = []

    async def serve() -> None:
        async with open_control(socket, agent, {name: answering(spec) for name, spec in SPECS.items()}):
            stop.append(asyncio.Event())
            ready.set()
            await stop[0].wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        if not ready.wait(30):
            raise TimeoutError(f"nothing listens on {socket}")
        yield agent
    finally:
        if stop:
            loop.call_soon_threadsafe(stop[0].set)
        thread.join(30)
        loop.close()
