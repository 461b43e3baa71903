"""A device of the demo: its configuration, its agent's process tree, and its command line."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fractal.demo import marks
from fractal.guard.processes import scan


class DemoFailed(Exception):  # reads as what happened
    """A command of the demo failed, or a promise was broken."""


@dataclass(slots=True)
class DemoDevice:
    """One agent with its own configuration, state folder and processes."""

    name: str
    folder: Path
    roles: tuple[str, ...]
    shared: Path
    https_port: int = 0
    word: str = field(default_factory=marks.new_word, repr=False)
    """What the run's processes are told by."""
    env: dict[str, str] = field(default_factory=dict)
    """Variables that its agent gets beside those of this process."""
    agent: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def state(self) -> Path:
        """Its state folder. The word is in its name, and so in the arguments of its guard and the environment of its apps."""
        return self.folder / f"state-{self.word}"

    @property
    def environment(self) -> dict[str, str]:
        """What every process that is started for this device gets."""
        return {**os.environ, **self.env, marks.WORD: f"{self.word}:{self.folder.name}"}

    @property
    def config(self) -> Path:
        """Its configuration file."""
        return self.folder / "config.toml"

    def configure(self) -> None:
        """Write the configuration."""
        self.folder.mkdir(parents=True, exist_ok=True)
        roles = ", ".join(json.dumps(r) for r in self.roles)
        self.config.write_text(
            f"""schema = 1

[device]
name = {json.dumps(self.name)}
state_dir = {json.dumps(str(self.state))}
runtime_dir = {json.dumps(str(self.folder / "run"))}
roles = [{roles}]

[runtime]
backend = "process"
[runtime.process]
envs = {json.dumps(str(self.shared / "envs"))}

[coordination]
backend = "sqlite"
[coordination.sqlite]
path = {json.dumps(str(self.shared / "log" / "log.sqlite"))}

[transport]
backend = "direct"
[transport.direct]
listen = "127.0.0.1"
https_port = {self.https_port}
"""
        )

    def start(self) -> None:
        """Start the agent in a session of its own, so that a signal to the demo does not reach it by accident."""
        log = (self.folder / "agent.log").open("ab")
        self.agent = subprocess.Popen(
            [*command(), "--config", str(self.config), "agent", "run"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=self.environment,
            start_new_session=True,
        )
        log.close()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if self.agent.poll() is not None:
                raise DemoFailed(f"the agent of {self.name} ended: {self.last_words()}")
            if self.ask("agent", "status", check=False) is not None:
                return
            time.sleep(0.2)
        raise DemoFailed(f"the agent of {self.name} did not answer in 60 s: {self.last_words()}")

    def last_words(self) -> str:
        """The end of the agent's log."""
        path = self.folder / "agent.log"
        return path.read_text(errors="replace")[-1500:] if path.exists() else "no log"

    def run(self, *words: str, timeout: float = 180.0) -> str:
        """Run `homeserver WORDS` against this device's agent; its output. Raises DemoFailed."""
        try:
            done = subprocess.run(
                [*command(), "--config", str(self.config), *words],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise DemoFailed(
                f"homeserver {' '.join(words)} on {self.name}: no end after {timeout:g} s"
            ) from error
        if done.returncode:
            raise DemoFailed(
                f"homeserver {' '.join(words)} on {self.name}: exit {done.returncode}: {done.stderr.strip()}"
            )
        return done.stdout

    def ask(self, *words: str, check: bool = True) -> dict[str, Any] | None:
        """Run a command with `--json`; its document. None if it failed and `check` is off."""
        try:
            text = self.run(*words, "--json")
        except DemoFailed:
            if check:
                raise
            return None
        value = json.loads(text)
        return value if isinstance(value, dict) else {"value": value}

    def processes(self) -> list[int]:
        """Every process of this device: agent, guard, apps and their children."""
        return [p.pid for p in marks.ours(scan(), self.word, self.folder.name, self.state)]

    def kill_everything(self) -> float:
        """The device dies: SIGKILL to every process of it, until none is left. The instant at which it was struck."""
        ended = marks.end(self.word, {self.folder.name: self.state})
        self.reap()
        return ended.struck

    def signal_agent(self, number: signal.Signals) -> None:
        """Signal the agent alone."""
        if self.agent is not None and self.agent.poll() is None:
            self.agent.send_signal(number)

    def reap(self) -> None:
        """Collect the agent's exit."""
        if self.agent is not None:
            try:
                self.agent.wait(timeout=20)
            except subprocess.TimeoutExpired as error:
                raise DemoFailed(f"the agent of {self.name} does not end by SIGKILL in 20 s") from error
            self.agent = None

    def stop(self) -> None:
        """End everything of this device, politely first."""
        self.signal_agent(signal.SIGCONT)
        self.signal_agent(signal.SIGTERM)
        if self.agent is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.agent.wait(timeout=15)
        self.kill_everything()


def command() -> list[str]:
    """The `homeserver` command that was installed beside the interpreter that runs the demo."""
    return [str(Path(sys.executable).with_name("homeserver"))]


def kill(pid: int, number: signal.Signals) -> None:
    """Signal a process that may have ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
