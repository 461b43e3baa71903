"""The engine behind its socket: every request in a thread of our own, bounded in time, its errors told as ours.

Threads of our own and not the agent's workers: a hung engine must not hold up anything else.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import docker
import docker.errors
import requests.exceptions
import urllib3.exceptions

from fractal.api.backend import Probe
from fractal.api.errors import BackendError, Conflict, Misconfigured, NotFound
from fractal_docker.config import DockerConfig

T = TypeVar("T")
API = "1.41"
"""Docker 20.10, the oldest that is supported."""
THREADS = 12


class Engine:
    """Requests to one engine. `api` is the SDK's low-level client, which speaks the engine's own words."""

    def __init__(self, config: DockerConfig) -> None:
        self.socket = Path(config.socket)
        self.timeout = config.timeout
        self.api = docker.APIClient(
            base_url=f"unix://{config.socket}", version=API, timeout=config.timeout, num_pools=THREADS
        )
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="docker")
        self._trusted = False

    def close(self) -> None:
        """Take no further requests. One that the engine has not answered ends by its time-out."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self.api.close()

    async def __call__(
        self, what: str, function: Callable[..., T], /, *arguments: Any, timeout: float = 0.0, **options: Any
    ) -> T:
        """Run `function` of the SDK; `what` names it in errors. `timeout` only lengthens the wait, as for a slow stop.

        A cancellation goes on at once; the engine may carry out what was sent all the same. Raises NotFound, Conflict
        and BackendError (retryable if the engine did not answer).
        """
        if not self._trusted:
            await self._trust()
        return await self._run(what, function, *arguments, timeout=timeout, **options)

    async def _run(
        self, what: str, function: Callable[..., T], /, *arguments: Any, timeout: float = 0.0, **options: Any
    ) -> T:
        loop = asyncio.get_running_loop()
        with self.errors(what):
            async with asyncio.timeout(max(timeout, self.timeout) + 5.0):
                return await loop.run_in_executor(self._threads, lambda: function(*arguments, **options))

    async def _trust(self) -> None:
        """What can only be seen once the engine answers: that it places containers where the guard will look."""
        info = await self._run("info", self.api.info)
        driver = info.get("CgroupDriver", "")
        if driver != "cgroupfs":
            raise Misconfigured(
                "socket",
                f"the engine at {self.socket} has cgroup driver {driver!r}, with which the guard cannot freeze a run; put "
                '{"exec-opts": ["native.cgroupdriver=cgroupfs"]} into /etc/docker/daemon.json and restart it',
            )
        self._trusted = True

    @contextlib.contextmanager
    def errors(self, what: str) -> Any:
        """Translate the SDK's errors."""
        where = f"docker at {self.socket}: {what}"
        try:
            yield
        except docker.errors.NotFound as error:
            raise NotFound(f"{where}: {error.explanation or error}") from error
        except docker.errors.APIError as error:
            status = error.response.status_code if error.response is not None else 500
            kind = Conflict if status == 409 else BackendError
            raise kind(f"{where}: {error.explanation or error}", retryable=status >= 500) from error
        except (TimeoutError, requests.exceptions.Timeout) as error:
            raise BackendError(f"{where}: no answer in time; is the engine hung?", retryable=True) from error
        except (
            docker.errors.DockerException,
            requests.exceptions.RequestException,
            urllib3.exceptions.HTTPError,
            OSError,
        ) as error:
            raise BackendError(f"{where}: {error}; does the engine run?", retryable=True) from error


@contextlib.asynccontextmanager
async def open_engine(config: DockerConfig) -> AsyncIterator[Engine]:
    """A connection to the engine, which need not run yet."""
    if not Path(config.socket).is_absolute():
        raise Misconfigured("socket", f"{config.socket!r} is not the absolute path of a Unix socket")
    engine = Engine(config)
    try:
        yield engine
    finally:
        engine.close()


async def probe(config: DockerConfig) -> Probe:
    """The engine's version, or why it cannot be used."""
    try:
        async with open_engine(config) as engine:
            found = await engine("version", engine.api.version)
    except BackendError as error:
        return Probe(False, f"{error} (Debian package docker.io)")
    return Probe(True, f"Docker {found.get('Version', '?')} at {config.socket}")
