"""Terminals inside apps: one command that shows what a program prints as long as it runs, and one that types into it."""

from __future__ import annotations

import base64
import binascii

from fractal.agent.agent import Agent
from fractal.agent.control.app import job_of, named
from fractal.agent.control.dispatch import Result, command
from fractal.agent.control.params import Params
from fractal.agent.control.progress import Progress
from fractal.api.app import Command, run_key
from fractal.api.errors import Denied, InvalidInput, NotFound, NotSupported
from fractal.api.runtime import SupportsTerminal

LARGEST = 1000
"""Rows and columns of a window."""


@command("app.terminal")
async def app_terminal(agent: Agent, params: Params, progress: Progress) -> Result:
    group, app = named(agent, params)
    if app.owner != group.me:
        there = group.state.device_name(app.owner)
        raise Denied(
            f"{app.name} runs on {there}: a terminal is opened there, or use `app exec` without --tty"
        )
    runtime = agent.runtime
    if not isinstance(runtime, SupportsTerminal):
        raise NotSupported("this device's runtime has no terminals: use `app exec` without --tty")
    job = job_of(group, app)
    service = params.text("service") or job.spec.web_service or job.spec.services[0].name
    rows, columns = _size(params.integer("rows", 24), params.integer("columns", 80))
    env = {"TERM": params.text("term")} if params.text("term") else {}
    wanted = Command(argv=tuple(params.items("argv")), env=env)
    key, name = run_key(group.id, app.id, app.epoch), agent.entropy.bytes(8).hex()
    async with runtime.terminal(key, service, wanted, rows=rows, columns=columns) as terminal:
        agent.terminals[name] = terminal
        try:
            await progress.output({"terminal": name, "data": ""})
            while shown := await terminal.read():
                await progress.output({"terminal": name, "data": base64.b64encode(shown).decode()})
        finally:
            del agent.terminals[name]
        return {"exit_code": await terminal.exit_code()}


@command("app.type")
async def app_type(agent: Agent, params: Params, _: Progress) -> Result:
    terminal = agent.terminals.get(params.text("terminal"))
    if terminal is None:
        raise NotFound("no such terminal is open: its command has ended")
    if "rows" in params and "columns" in params:
        await terminal.resize(*_size(params.integer("rows"), params.integer("columns")))
    try:
        typed = base64.b64decode(params.text("data"), validate=True)
    except binascii.Error as error:
        raise InvalidInput("data: not base64") from error
    if typed:
        await terminal.write(typed)
    return {}


def _size(rows: int, columns: int) -> tuple[int, int]:
    """Of a window that there can be."""
    return min(max(rows, 1), LARGEST), min(max(columns, 1), LARGEST)
