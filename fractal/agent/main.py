"""The agent's process: puts the shell, the backends and the agent together, and ends them in order."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fractal.agent.agent import Agent, Shell
from fractal.agent.control.handlers import COMMANDS
from fractal.agent.control.server import open_control
from fractal.agent.notes import Notes
from fractal.api.context import Entropy
from fractal.config import load
from fractal.config.model import DeviceConfig
from fractal.crypto.keys import DeviceKeys
from fractal.guard.client import GuardClient
from fractal.guard.launch import ensure_guard
from fractal.plugins import Plugins
from fractal.shell.clock import SystemClock
from fractal.shell.entropy import SystemEntropy
from fractal.shell.folders import private_folder
from fractal.shell.lock import state_lock
from fractal.shell.memory import free_memory
from fractal.shell.notes import SqliteNotes
from fractal.shell.notify import Notifier
from fractal.shell.outside import SystemOutside
from fractal.shell.process import ProcessRun
from fractal.shell.secrecy import keep_memory_private
from fractal.shell.workers import ThreadWorkers

CONTROL = "control.sock"
DEVICE_KEYS = "device/keys"
STATUS_EVERY = 5.0
FIRST_READS = 20.0
"""Seconds after which the agent counts as started although a log has not been read."""


def run(path: Path) -> None:
    """Run the agent of the configuration at `path` until SIGTERM or SIGINT. Raises FractalError."""
    keep_memory_private()
    config = load(path)
    logging.basicConfig(
        level=config.log.level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    asyncio.run(serve(config))


async def serve(config: DeviceConfig) -> None:
    """Everything from the state folder's lock to the last goodbye."""
    private_folder(config.device.state_dir)
    private_folder(config.device.runtime_dir)
    with state_lock(config.device.state_dir):
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        async with open_agent(config) as agent:
            socket = config.device.runtime_dir / CONTROL
            async with open_control(socket, agent, COMMANDS, contexts=agent.contexts):
                # What start-up made stays for good: keep the collector from walking it again and again.
                gc.freeze()
                logging.getLogger("homeserver").info("%s", first_words(agent, socket))
                await run_until(stop, agent, Notifier())


def first_words(agent: Agent, socket: Path) -> str:
    """What a person who started the agent by hand sees, before anything happens."""
    names = [group.state.name or group.id[:8] for group in agent.groups.values()]
    text = f"agent of {agent.config.device.name} runs, listens on {socket}"
    if names:
        return f"{text}; groups: {', '.join(names)}"
    return f"{text}; in no group yet, next: homeserver group create NAME, or homeserver group join CODE"


async def run_until(stop: asyncio.Event, agent: Agent, notifier: Notifier) -> None:
    """Run the agent until told to stop, then let it hand its apps over; tell the supervisor how it goes."""
    running = asyncio.create_task(agent.run())
    telling = asyncio.create_task(_tell(agent, notifier))
    stopping = asyncio.create_task(stop.wait())
    reading = asyncio.create_task(_say_ready(agent, notifier))
    tasks = {running, telling, stopping}
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done - {stopping}:
            task.result()
        if stopping in done:
            # The apps go on being observed and routed while they are handed over.
            notifier.stopping("handing apps over")
            handing = asyncio.create_task(agent.hand_over())
            await asyncio.wait({handing, running}, return_when=asyncio.FIRST_COMPLETED)
            await handing
    finally:
        for task in (*tasks, reading):
            task.cancel()
        await asyncio.wait((*tasks, reading))


async def _say_ready(agent: Agent, notifier: Notifier) -> None:
    """Ready once every group's log was read to its end, or could not be: that is told, and the agent goes on trying."""
    end = agent.clock.boottime() + FIRST_READS
    while agent.clock.boottime() < end and (waiting := _unread(agent, given_up=False)):
        notifier.status(f"reading the log of {', '.join(waiting)}")
        await agent.clock.sleep(0.1)
    unread = _unread(agent, given_up=True)
    text = f"device {agent.config.device.name}, {len(agent.groups)} group(s)"
    notifier.ready(f"{text}; not yet read: the log of {', '.join(unread)}" if unread else text)


def _unread(agent: Agent, *, given_up: bool) -> list[str]:
    """Groups whose log was not read to its end yet; `given_up`: also those where an attempt failed."""
    return [
        group.state.name or group.id[:8]
        for group in agent.groups.values()
        if group.journal.proof_sent is None and not group.blind and (given_up or not group.log_problem)
    ]


async def _tell(agent: Agent, notifier: Notifier) -> None:
    """Watchdog and status line, from the loop that everything runs on: a hung loop tells nothing."""
    pause = min(STATUS_EVERY, notifier.watchdog_interval or STATUS_EVERY)
    while True:
        notifier.watchdog()
        await agent.clock.sleep(pause)
        jobs = [job for group in agent.groups.values() for job in group.jobs.values()]
        if agent.stopping:
            left = sorted(job.app.name for job in jobs if not job.resting)
            notifier.status(f"ending: {', '.join(left) or 'nothing left to do'}")
            continue
        problems = [g.log_problem for g in agent.groups.values() if g.log_problem]
        problems += [p for p in (agent.guard_problem, agent.link_problem) if p]
        text = f"{len(agent.groups)} group(s), {sum(job.owns for job in jobs)} app(s) here"
        notifier.status("; ".join([text, *problems]))


@asynccontextmanager
async def open_agent(config: DeviceConfig) -> AsyncIterator[Agent]:
    logger = logging.getLogger("homeserver")
    clock, entropy, runner = SystemClock(), SystemEntropy(), ProcessRun()
    notes = SqliteNotes(config.device.state_dir / "agent.sqlite")
    folder = config.device.state_dir / "guard"

    async def ensure() -> GuardClient:
        return await ensure_guard(folder, run=runner, clock=clock)

    try:
        async with ThreadWorkers() as workers:
            shell = Shell(
                clock=clock,
                entropy=entropy,
                workers=workers,
                run=runner,
                notes=notes,
                ensure_guard=ensure,
                outside=SystemOutside(),
                free_memory=free_memory(),
            )
            agent = Agent(
                config=config,
                plugins=Plugins.discover(disabled=config.plugins.disabled, enabled=config.plugins.enabled),
                keys=device_keys(notes, entropy),
                shell=shell,
                logger=logger,
                guard=await ensure(),
                pid=os.getpid(),
                started=clock.boottime(),
            )
            async with agent:
                yield agent
    finally:
        notes.close()


def device_keys(notes: Notes, entropy: Entropy) -> DeviceKeys:
    """This device's keys, made at the first start. They never leave the device."""
    stored = notes.get(DEVICE_KEYS)
    if stored is not None:
        return DeviceKeys.from_bytes(stored)
    keys = DeviceKeys.generate(entropy)
    notes.write({DEVICE_KEYS: keys.to_bytes()})
    return keys
