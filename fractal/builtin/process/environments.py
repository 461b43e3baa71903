"""Python environments, one per set of requirements, shared by every app and agent that needs the same set."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from fractal.api.context import Context
from fractal.api.errors import BackendError, Misconfigured, NotInstalled
from fractal.builtin.process.config import ProcessConfig

REQUIREMENT = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}(\[[A-Za-z0-9._,-]{1,200}\])?==[A-Za-z0-9][A-Za-z0-9.!+_-]{0,99}"
)
"""`name==version` or `name[extra]==version`: nothing that pip could read as an option, a URL or a path."""
_COMPLETE = "complete.json"


class Environments:
    """A folder of virtual environments. An environment is whole if it holds `complete.json`, written last."""

    def __init__(self, context: Context, config: ProcessConfig) -> None:
        self._context = context
        self._config = config
        self.folder = Path(config.envs) if config.envs else context.state_dir / "envs"
        self.base = config.python or sys.executable

    async def python(self, requirements: Sequence[str]) -> Path:
        """The interpreter of the environment that holds exactly these requirements; made if need be.

        Raises BackendError (naming the requirement pip stumbled over), NotInstalled, Misconfigured.
        """
        if not requirements:
            return Path(self.base)
        for requirement in requirements:
            if not REQUIREMENT.fullmatch(requirement):
                raise BackendError(f"requirement {requirement!r}: must be pinned as name==version")
        home = self.folder / await self._name(requirements)
        if not (home / _COMPLETE).exists():
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            async with self._locked(home.name):
                if not (home / _COMPLETE).exists():
                    await self._make(home, sorted(requirements))
        return home / "bin" / "python"

    async def _name(self, requirements: Sequence[str]) -> str:
        code = "import sys, sysconfig; print(sys.version, sysconfig.get_platform(), sys.base_prefix)"
        about = await self._context.run([self.base, "-I", "-c", code])
        digest = hashlib.blake2b(about.stdout, digest_size=10)
        digest.update(json.dumps(sorted(requirements)).encode())
        return digest.hexdigest()

    async def _make(self, home: Path, requirements: Sequence[str]) -> None:
        self._context.logger.info("installing %s", ", ".join(requirements))
        await self._context.workers.run(shutil.rmtree, home, True)  # what a killed attempt left
        wheels = ["--no-index", "--find-links", self._config.wheels] if self._config.wheels else []
        binary = [] if self._config.source_builds else ["--only-binary", ":all:"]
        try:
            # The base interpreter's pip installs into the environment: one that held its own would cost seconds.
            await self._context.run(
                [self.base, "-I", "-m", "venv", "--without-pip", str(home)], timeout=120.0
            )
            pip = [
                self.base,
                "-I",
                "-m",
                "pip",
                "--python",
                str(home / "bin" / "python"),
                "install",
                "--no-input",
            ]
            quiet = ["--quiet", "--disable-pip-version-check", "--no-compile"]
            await self._context.run(
                [*pip, *quiet, *wheels, *binary, *requirements], timeout=self._config.prepare_timeout
            )
        except NotInstalled as error:
            raise Misconfigured("python", f"{self.base}: {error}") from error
        except BackendError as error:
            raise BackendError(
                f"process runtime: cannot install {', '.join(requirements)}: {error}", retryable=True
            ) from error
        draft = home / (_COMPLETE + ".new")
        draft.write_text(
            json.dumps({"requirements": list(requirements), "python": self.base}), encoding="utf-8"
        )
        draft.replace(home / _COMPLETE)

    @contextlib.asynccontextmanager
    async def _locked(self, name: str) -> AsyncIterator[None]:
        lock = os.open(self.folder / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        end = self._context.clock.boottime() + self._config.prepare_timeout
        try:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if self._context.clock.boottime() >= end:
                        message = (
                            f"environment {self.folder / name}: another agent has been making it for too long"
                        )
                        raise BackendError(message, retryable=True) from error
                    await self._context.clock.sleep(0.2)
            yield
        finally:
            os.close(lock)
