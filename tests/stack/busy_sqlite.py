"""The app of two busy SQLite files as a process, saved by the builtin snapshotter, which copies."""

from __future__ import annotations

import http.client
import json
import textwrap
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.stack.bed import GROUP, Bed, Device, until

APP = Path(__file__).with_name("sqlite_app.py")
NAME = "busy"
UP = 60.0
BACK = 600.0
"""Seconds in which a moment of minutes of writing is put in place, beside a writer that never rests."""


@dataclass
class BusySqlite:
    """The app on its device."""

    bed: Bed
    device: Device
    acknowledged: dict[str, dict[str, int]] = field(default_factory=dict)
    """Moment -> what each file's database had acknowledged before it was begun."""

    @classmethod
    def install(cls, bed: Bed, device: Device) -> BusySqlite:
        """Install it, and have it write."""
        path = bed.folder / f"{NAME}.yml"
        path.write_text(
            f"""\
name: {NAME}
services:
  app:
    stop_grace_period: 2s
    x-homeserver:
      process:
        argv: ["{{python}}", "-I", "{{file.app}}", "{{port.web}}", "{{data.data}}"]
        ports: [web]
        data: [data]
        files:
          app: |
{textwrap.indent(APP.read_text(), " " * 12)}
      health: {{http: /, port: web, interval: 500ms, timeout: 2s, retries: 5, start_period: 60s}}
x-homeserver:
  web: {{service: app, port: web}}
"""
        )
        device.run(
            *("app", "install", str(path), "--group", GROUP, "--device", device.name),
            *("--interval", "3600", "--wait", "60"),
        )
        app = cls(bed, device)
        app.ask("POST", "/")
        until(lambda: min(app.ask("GET", "/").values()) > 0, UP, "both files were written to")
        return app

    def ask(self, method: str, path: str, app: str = NAME) -> dict[str, Any]:
        """One request. Raises OSError."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port(app), timeout=30)
        try:
            connection.request(method, path)
            found: dict[str, Any] = json.loads(connection.getresponse().read())
            return found
        finally:
            connection.close()

    def _port(self, app: str) -> int:
        """By the command line of its process. Raises LookupError."""
        for pid in self.device.app_pids(self.device.app(app)["id"]):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if len(words) > 5 and words[2].endswith(b"app"):
                return int(words[3])
        raise LookupError(f"{app} does not run")

    def save_busy(self, times: int, every: float) -> None:
        """Take snapshots at an interval while it goes on writing."""
        began, noted = time.monotonic(), dict[str, int]()
        for number in range(1, times + 1):
            noted = self.ask("GET", "/")
            done = self.device.call("snapshot.create", app=NAME, group=GROUP, wait_s=60)
            assert done["done"], done
            self.acknowledged[done["moment"]] = noted
            time.sleep(max(0.0, began + number * every - time.monotonic()))
        after = self.ask("GET", "/")
        assert all(after[journal] > noted[journal] for journal in after), "both were written to until the end"

    def every_moment_holds(self) -> int:
        """Restore and start each kept moment, and have SQLite look at it; how many there were."""
        listed = self.device.call("snapshot.list", app=NAME, group=GROUP)["snapshots"]
        moments = [s["moment"] for s in listed]
        assert set(self.acknowledged) <= set(moments), "none of them was given up"
        for moment in moments:
            name = f"fork-{moment}"
            # Its writer goes on meanwhile, and what is put in place is made durable beside all that it writes.
            words = ("--group", GROUP, "--at", moment, "--device", self.device.name, "--wait", f"{BACK:g}")
            self.device.run("app", "fork", NAME, name, *words, timeout=BACK + UP)
            until(lambda name=name: self.device.app(name)["health"] == "healthy", UP, f"{moment} starts")  # type: ignore[misc]
            noted = self.acknowledged.get(moment, {})
            for journal, (said, count, last) in self.ask("GET", "/check", name).items():
                assert said == "ok", f"{moment}: {journal}: {said}"
                assert noted.get(journal, 0) <= last == count, f"{moment}: {journal}: {count} lines to {last}"
            self.device.run("app", "remove", name, "--group", GROUP, "--yes")
        return len(moments)
