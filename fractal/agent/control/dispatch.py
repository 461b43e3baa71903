"""Commands by name: each a `Spec` bound to the handler that carries it out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeVar

from fractal.agent.control.contract import Spec
from fractal.agent.control.params import Params
from fractal.agent.control.plan import Plan
from fractal.agent.control.progress import Progress
from fractal.agent.control.specs import SPECS

Result = Mapping[str, object]
Handler = Callable[[Any, Params, Progress], Awaitable[Result | Plan]]
H = TypeVar("H", bound=Handler)


@dataclass(frozen=True, slots=True)
class Command:
    """A handler and what it promises."""

    spec: Spec
    handler: Handler

    async def run(self, agent: object, params: Params, progress: Progress) -> Result:
        """Carry the command out, or only plan it if `dry_run` says so.

        A changing command's handler returns a `Plan` and applies nothing itself, so a dry run cannot change anything.
        """
        result = await self.handler(agent, params, progress)
        if isinstance(result, Plan) != self.spec.changes:
            wanted = "a plan" if self.spec.changes else "a result"
            raise TypeError(f"the handler of {self.spec.name} must return {wanted}")
        if not isinstance(result, Plan):
            return result
        return result.to_plain(dry_run=True) if params.dry_run else await result.carry_out(progress)


def command(name: str) -> Callable[[H], H]:
    """Mark a function as the handler of `name`, which `specs` must declare; `collect` finds it."""
    spec = SPECS[name]

    def mark(handler: H) -> H:
        handler.__command__ = Command(spec, handler)  # type: ignore[attr-defined]  # a mark that `collect` reads
        return handler

    return mark


def collect(*modules: ModuleType) -> dict[str, Command]:
    """Every marked handler of these modules by its command's name. Two handlers of one command are a bug."""
    found: dict[str, Command] = {}
    for module in modules:
        for value in vars(module).values():
            marked = getattr(value, "__command__", None)
            if not isinstance(marked, Command) or getattr(value, "__module__", "") != module.__name__:
                continue
            if marked.spec.name in found:
                raise ValueError(f"two handlers of {marked.spec.name}")
            found[marked.spec.name] = marked
    return found
