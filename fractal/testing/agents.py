"""Real agents in one process, for tests of the agent as a whole: each with its own folders, guard, runtime and transport.

What they share is what devices of one household share: a log and a store. Their apps are small Python services.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fractal.agent.agent import Agent
from fractal.agent.app_job import AppJob
from fractal.agent.control.handlers import COMMANDS
from fractal.agent.control.params import parse_params
from fractal.agent.control.progress import Silent
from fractal.agent.group import GroupAgent
from fractal.agent.main import open_agent
from fractal.config import load
from fractal.core.model import App
from fractal.guard.launch import end_guard
from fractal.shell.clock import SystemClock
from fractal.shell.folders import private_folder

PATIENCE = 60.0
"""Seconds after which a condition that a test waits for counts as never coming true."""
SERVER = """
import http.server, os, pathlib
data = pathlib.Path(os.environ["DATA"])
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(os.environ["WORD"].encode())
    def log_message(self, *_): pass
class Server(http.server.HTTPServer):
    def server_bind(self):
        self.socket.bind(self.server_address); self.server_name, self.server_port = "app", self.server_address[1]
(data / "starts").open("a").write(os.environ["WORD"] + chr(10))
Server(("127.0.0.1", int(os.environ["PORT"])), Answer).serve_forever()
"""


def service(
    name: str = "web", *, code: str = SERVER, word: str = "one", interval: str = "200ms", more: str = ""
) -> str:
    """A service of a manifest: serves `word`, is asked each `interval` for its health, notes each of its starts in the volume."""
    lines = "\n".join(f"              {line}" for line in code.strip().splitlines())
    return f"""
  {name}:
    stop_grace_period: 2s
    environment: {{WORD: "{word}", PORT: "{{port.web}}", DATA: "{{data.data}}"}}
    x-homeserver:
      process:
        argv: ["{{python}}", "{{file.server}}"]
        ports: [web]
        data: [data]
        files:
          server: |
{lines}
      health: {{http: /, port: web, interval: {interval}, start_period: 20s}}
{more}"""


def manifest(*services: str, title: str = "Test") -> str:
    """A manifest of these services, one plain one unless told."""
    body = "".join(services or (service(),))
    return (
        f"name: test\nservices:{body}\nx-homeserver:\n  title: {title}\n  web: {{service: web, port: web}}\n"
    )


@dataclass
class Bed:
    """Agents by name, and one group of theirs."""

    folder: Path
    group: str = ""
    agents: dict[str, Agent] = field(default_factory=dict)
    _stacks: dict[str, AsyncExitStack] = field(default_factory=dict)

    # --- devices -------------------------------------------------------------------------------------------------

    async def start(
        self, name: str, *roles: str, https_port: int = 0, more: str = "", log: str = ""
    ) -> Agent:
        """Start the agent of a device; again after `stop`, with all that its folder holds. `more` ends its configuration.

        `log` configures another coordination backend than the one that the bed's agents share.
        """
        path = self.folder / name / "config.toml"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            shared = f'[coordination.sqlite]\npath = "{self.folder / "log.sqlite"}"'
            path.write_text(
                f"""schema = 1
[device]
name = "{name}"
state_dir = "{path.parent / "state"}"
runtime_dir = "{path.parent / "run"}"
roles = {json.dumps(roles or ("host",))}
[runtime.process]
envs = "{self.folder / "envs"}"
{log or shared}
[transport.direct]
https_port = {https_port}
{more}"""
            )
        config, stack = load(path), AsyncExitStack()
        private_folder(config.device.state_dir)
        private_folder(config.device.runtime_dir)
        agent = await stack.enter_async_context(open_agent(config))
        running = asyncio.create_task(agent.run())

        async def end() -> None:
            running.cancel()
            await asyncio.wait([running])

        stack.push_async_callback(end)
        self.agents[name], self._stacks[name] = agent, stack
        return agent

    async def stop(self, name: str) -> None:
        """The agent ends without a word; its guard and apps stay, as after SIGKILL."""
        del self.agents[name]
        await self._stacks.pop(name).aclose()

    async def close(self) -> None:
        """End every agent and guard, with all their processes."""
        for name in list(self.agents):
            await self.stop(name)
        for folder in sorted(self.folder.glob("*/state/guard")):
            await end_guard(folder, clock=SystemClock())

    # --- doing ---------------------------------------------------------------------------------------------------

    async def call(self, name: str, command: str, /, **params: object) -> Mapping[str, Any]:
        """Run a control command on a device; its result."""
        chosen = COMMANDS[command]
        answer = await chosen.run(
            self.agents[name], parse_params(chosen.spec, json.dumps(params).encode()), Silent()
        )
        result: Mapping[str, Any] = answer
        return result

    async def found(self, name: str, *, timers: str = "fast") -> None:
        """Make the group, with one store."""
        self.group = str((await self.call(name, "group.create", name="Group 1", timers=timers))["group"])
        shelf = self.folder / "shelf"
        shelf.mkdir()
        await self.call(name, "store.add", name="Shelf", backend="directory", config={"path": str(shelf)})

    async def join(self, name: str, *, by: str, **invitation: object) -> None:
        """Let another running agent in."""
        code = (await self.call(by, "group.invite", **invitation))["code"]
        more = {"member": name} if invitation.get("new_member") else {}
        joining = asyncio.create_task(self.call(name, "group.join", code=code, **more))
        device = self.agents[name].keys.id
        await self.until(lambda: device in self.at(by).state.requests)
        await self.call(by, "device.approve", device=device)
        await joining

    async def install(self, name: str, text: str = "", **params: object) -> None:
        """Install the app `test` and wait until it is healthy."""
        wanted = {"device": name, "interval_s": 10, "wait_s": 40, **params}
        result = await self.call(name, "app.install", manifest=text or manifest(), **wanted)
        assert result["done"], await self.call(name, "status.show")

    async def until(self, true: Callable[[], object], *, limit: float = PATIENCE) -> None:
        """Wait until something is so. Raises AssertionError."""
        end = SystemClock().boottime() + limit
        while not true():
            if SystemClock().boottime() > end:
                raise AssertionError(f"not within {limit:g} s")
            await SystemClock().sleep(0.05)

    # --- looking -------------------------------------------------------------------------------------------------

    def at(self, name: str) -> GroupAgent:
        """The group on a device."""
        return self.agents[name].groups[self.group]

    def app(self, name: str) -> App:
        """The app as the device knows it."""
        return next(a for a in self.at(name).state.apps.values() if a.name == "test")

    def job(self, name: str) -> AppJob:
        """The app's job on the device."""
        return self.at(name).jobs[self.app(name).id]

    def note(self, name: str) -> str:
        """What status says of the app on the device."""
        apps = self.at(name).status()["apps"]
        return str(next(a["note"] for a in apps if a["name"] == "test"))

    async def starts(self, name: str) -> list[str]:
        """The words with which the app was started, oldest first."""
        root = await self.job(name).data.root()
        return (root / "data" / "starts").read_text().split()


@asynccontextmanager
async def bed(folder: Path) -> AsyncIterator[Bed]:
    """An empty bed; everything that it started ends with it."""
    made = Bed(folder)
    try:
        yield made
    finally:
        await made.close()
