"""A tiny app in a container: a notebook of numbered lines behind busybox's web server."""

from __future__ import annotations

import io
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path

from tests.stack.bed import until
from tests.stack.real.device import GROUP, Device
from tests.stack.real.world import World

IMAGE = "fractal-test/notebook:1"
CGI = """#!/bin/sh
# Who writes comes one after the other (Debian's busybox has no flock); a number is there once it is on the disk.
if [ "$REQUEST_METHOD" = POST ]; then
  exec 9>>/data/lines
  n=$(/bin/busybox wc -l < /data/lines)
  echo "$n" >&9
  /bin/busybox sync
  printf 'Status: 201 Created\\r\\nContent-Type: text/plain\\r\\n\\r\\n%s\\n' "$n"
else
  printf 'Content-Type: text/plain\\r\\n\\r\\n'
  [ ! -e /data/lines ] || /bin/busybox cat /data/lines
fi
"""
MANIFEST = f"""\
name: notebook
services:
  web:
    image: {IMAGE}
    volumes: ["data:/data"]
    ports: ["8000"]
    stop_grace_period: 2s
    x-homeserver:
      health: {{http: /cgi-bin/lines, port: "8000", interval: 500ms, timeout: 2s, retries: 3, start_period: 30s}}
volumes:
  data:
x-homeserver:
  web: {{service: web, port: "8000"}}
"""
SETTINGS = ['CMD ["/bin/busybox","httpd","-f","-p","8000","-h","/www"]', "ENV PATH=/bin"]


def image(folder: Path) -> Path:
    """Its root file system."""
    path = folder / "notebook.tar"
    with tarfile.open(path, "w") as tar:
        for name in ("bin", "data", "www", "www/cgi-bin", "tmp"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        tar.add(shutil.which("busybox") or "busybox", "bin/busybox")
        link = tarfile.TarInfo("bin/sh")
        link.type, link.linkname = tarfile.SYMTYPE, "busybox"
        tar.addfile(link)
        entry = tarfile.TarInfo("www/cgi-bin/lines")
        entry.size, entry.mode = len(CGI), 0o755
        tar.addfile(entry, io.BytesIO(CGI.encode()))
    return path


@dataclass
class Notebook:
    """The app, wherever it runs. It is asked on the device itself: routes are tested elsewhere."""

    world: World
    name: str = "notebook"
    group: str = GROUP

    @classmethod
    def install(cls, world: World, device: Device, interval: int = 3600) -> Notebook:
        """Install it with the image that the device's engine has been given."""
        path = world.folder / "notebook.yml"
        path.write_text(MANIFEST)
        device.run(
            *("app", "install", str(path), "--group", GROUP, "--device", device.name),
            *("--interval", str(interval), "--wait", "90"),
        )
        return cls(world)

    def ask(self, device: Device, method: str = "GET") -> str:
        """What the page says to a request, asked inside its container: no route is needed for that."""
        script = f"REQUEST_METHOD={method} /www/cgi-bin/lines"
        answer = device.run("app", "exec", "--group", self.group, self.name, "/bin/sh", "-c", script)
        head, _, body = answer.replace("\r", "").partition("\n\n")
        assert head.splitlines()[-1].startswith("Content-Type"), answer
        return body

    def add(self, device: Device) -> int:
        """Write a line; its number."""
        return int(self.ask(device, "POST"))

    def lines(self, device: Device) -> list[int]:
        """All lines of the copy on a device; a gap or a line of a second writer fails."""
        found = [int(line) for line in self.ask(device).split()]
        assert found == list(range(len(found))), f"the notebook is damaged: {found}"
        return found

    def wait_for(self, device: Device, limit: float) -> float:
        """Until it runs on a device, and says so; seconds that it took."""
        return until(lambda: device.runs(self.name), limit, f"{self.name} runs on {device.name}")

    def at(self, device: Device, moment: str) -> int:
        """How many lines a moment holds, by restoring it into a fork."""
        name = f"fork-{moment}"
        device.run(
            "app", "fork", self.name, name, "--group", self.group, "--at", moment, "--device", device.name
        )
        fork = Notebook(self.world, name)
        until(lambda: device.runs(name), 60, f"{name} answers")
        count = len(fork.lines(device))
        device.run("app", "remove", name, "--group", self.group, "--yes")
        return count
