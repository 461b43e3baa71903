"""Root file systems of container images, made of Debian's packages and kept by what they are made of.

The packages come from wherever this machine's apt gets its own, and are asked for when an image is first made. What is
made lies in a cache; its name is a digest of its recipe.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")
BUILD = 900.0


@dataclass(frozen=True, slots=True)
class Recipe:
    """What an image is made of."""

    name: str
    """As manifests name it, with its tag."""
    packages: tuple[str, ...]
    files: dict[str, str] = field(default_factory=dict)
    """Absolute path -> content; what begins with `#!` may be executed."""
    shell: tuple[str, ...] = ()
    """Commands inside, once the packages are there."""
    left_out: tuple[str, ...] = ()
    """Paths of packages that are not unpacked."""
    settings: tuple[str, ...] = ()
    """Dockerfile words: CMD, ENV and the like."""

    @property
    def digest(self) -> str:
        """Of everything that the content depends on, but the packages' versions."""
        parts = [self.packages, sorted(self.files.items()), self.shell, self.left_out, LEFT_OUT]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]

    def archive(self) -> Path:
        """Its root file system as a tar file, made if it is not there yet. Raises RuntimeError."""
        folder = cache()
        path = folder / f"{self.name.replace('/', '-').replace(':', '-')}-{self.digest}.tar"
        with (folder / "lock").open("w") as lock:  # two test runs at once make it once
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                for stale in folder.glob("making-*"):  # of a run that was killed; its mounts went with it
                    shutil.rmtree(stale)
                scratch = path.with_suffix(".new.tar")
                try:
                    self._make(scratch)
                    scratch.rename(path)
                finally:
                    scratch.unlink(missing_ok=True)
        return path

    def _make(self, target: Path) -> None:
        options = [f"--dpkgopt=path-exclude={pattern}" for pattern in (*LEFT_OUT, *self.left_out)]
        with tempfile.TemporaryDirectory(prefix="making-", dir=cache()) as folder:
            for number, (path, content) in enumerate(sorted(self.files.items())):
                file = Path(folder, str(number))
                file.write_text(content)
                options.append(f"--customize-hook=upload {file} {path}")
                mode = "755" if content.startswith("#!") else "644"
                options.append(f'--customize-hook=chroot "$1" chmod {mode} {path}')
            options += [f'--customize-hook=chroot "$1" sh -ec {_quoted(line)}' for line in self.shell]
            words = ["mmdebstrap", "--mode=root", "--variant=essential", "--format=tar", *options]
            words += [f"--include={','.join(self.packages)}", codename(), str(target), *sources()]
            _run(words, {**os.environ, "TMPDIR": folder}, self.name)


def _run(words: list[str], env: dict[str, str], name: str) -> None:
    """Run it where what it starts and what it mounts end with it, also if it or we are killed. Raises RuntimeError."""
    log = Path(env["TMPDIR"], "log")
    spaces = ["--mount", "--propagation=slave", "--pid", "--fork", "--kill-child", "--mount-proc"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig=KILL", "unshare", *spaces, "--", *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=env,
            start_new_session=True,
        )
    try:
        code = process.wait(BUILD)
    finally:
        process.kill()
        process.wait(30)
    if code:
        raise RuntimeError(f"{name} cannot be made: {log.read_text(errors='replace')[-3000:]}")


def cache() -> Path:
    """Where images are kept between runs."""
    base = os.environ.get("XDG_CACHE_HOME") or (
        "/var/cache" if os.geteuid() == 0 else str(Path.home() / ".cache")
    )
    folder = Path(base) / "fractal-tests" / "images"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def codename() -> str:
    """Of this machine's Debian."""
    lines = Path("/etc/os-release").read_text().splitlines()
    return next(line.partition("=")[2].strip('"') for line in lines if line.startswith("VERSION_CODENAME="))


def sources() -> list[str]:
    """Lines for apt that lead where this machine's apt gets Debian from."""
    words = ["apt-get", "indextargets", "Created-By: Packages", "Origin: Debian", "--format"]
    listed = subprocess.run(
        [*words, "$(REPO_URI) $(RELEASE) $(COMPONENT)"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    found = sorted({line for line in listed.splitlines() if line.strip()})
    if not found:
        raise RuntimeError("apt knows no Debian archive: run apt-get update")
    return [f"deb {line}" for line in found]


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
