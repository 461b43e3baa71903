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
    env: dict[str, str] = field(default_factory=dict)
    """Variables that its agent gets beside those of this process."""
    agent: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def state(self) -> Path:
        """Its state folder: also what its processes are told apart by."""
        return self.folder / "state"

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
            env={**os.environ, **self.env},
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
        done = subprocess.run(
            [*command(), "--config", str(self.config), *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
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
        """Every process of this device: agent, guard, apps. Found by the device's folder in environment or arguments."""
        return [pid for pid in all_pids() if mentions(pid, str(self.folder))]

    def kill_everything(self) -> None:
        """The device dies: SIGKILL to every process of it, until none is left."""
        deadline = time.monotonic() + 10
        while (pids := self.processes()) and time.monotonic() < deadline:
            for pid in pids:
                kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        self.reap()

    def signal_agent(self, number: signal.Signals) -> None:
        """Signal the agent alone."""
        if self.agent is not None and self.agent.poll() is None:
            self.agent.send_signal(number)

    def reap(self) -> None:
        """Collect the agent's exit."""
        if self.agent is not None:
            self.agent.wait(timeout=20)
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


def all_pids() -> list[int]:
    """Every process id, but this one's."""
    return [int(p.name) for p in Path("/proc").iterdir() if p.name.isdecimal() and int(p.name) != os.getpid()]


def mentions(pid: int, text: str) -> bool:
    """Whether a process belongs to a folder, by its arguments, its working folder or its environment."""
    wanted = os.fsencode(text)
    try:
        if wanted in Path(f"/proc/{pid}/cmdline").read_bytes():
            return True
        if os.fsencode(Path(f"/proc/{pid}/cwd").readlink()).startswith(wanted):
            return True
        return wanted in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False


def kill(pid: int, number: signal.Signals) -> None:
    """Signal a process that may have ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
