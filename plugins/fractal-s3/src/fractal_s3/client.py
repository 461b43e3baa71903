"""Requests to the server: botocore in threads of this store's own, each with an end, and what may be repeated repeated."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from typing import Any, TypeVar

import botocore.session
from botocore.config import Config

from fractal.api.context import Context
from fractal.api.errors import BackendError, Misconfigured
from fractal_s3.config import S3Config
from fractal_s3.credentials import Credentials
from fractal_s3.faults import Unanswered, explain

T = TypeVar("T")

ATTEMPTS = 3
"""How often a request is made that may be repeated."""
PAUSE = 0.5
"""Seconds before the second attempt; twice that before the third."""
LONGEST_PAUSE = 5.0
"""Seconds; whoever asks for more is left to the caller."""
THREADS = 16
SLOWEST = 8 << 10
"""Bytes per second below which a line counts as none."""


class Client:
    """One server and the key for it, from `connect`. Blocking calls run in threads of its own, so that a silent server holds up nobody else."""

    def __init__(self, context: Context, config: S3Config, client: Any) -> None:
        self.where = config.where
        self.config = config
        self._clock = context.clock
        self._entropy = context.entropy
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="s3")
        self._closing: set[asyncio.Future[Any]] = set()
        self._client = client

    async def ask(self, operation: str, what: str, **parameters: Any) -> Mapping[str, Any]:
        """A request that may be repeated, and its answer. Raises BackendError and its subclasses."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return await self.once(operation, what, **parameters)
            except BackendError as error:
                if attempt == ATTEMPTS or not error.retryable or error.wait > LONGEST_PAUSE:
                    raise
                await self.pause(attempt, error)
        raise AssertionError("the last attempt returns or raises")

    async def pause(self, attempt: int, error: BackendError) -> None:
        """Wait before the next attempt, at least as long as the server asked for."""
        jitter = self._entropy.uniform(0.5, 1.0)
        await self._clock.sleep(max(error.wait, PAUSE * 2 ** (attempt - 1) * jitter))

    async def once(self, operation: str, what: str, **parameters: Any) -> Mapping[str, Any]:
        """A request made once, to the bucket. Raises as `ask`."""
        body = parameters.get("Body")
        size = 0
        if body is not None and not isinstance(body, bytes):
            size = body.seek(0, os.SEEK_END)
            body.seek(0)

        def call() -> Mapping[str, Any]:
            answer: Mapping[str, Any] = getattr(self._client, operation)(
                Bucket=self.config.bucket, **parameters
            )
            return answer

        return await self.run(what, call, size=size)

    async def run(self, what: str, call: Callable[[], T], *, size: int = 0) -> T:
        """Something of the library's in a thread; `size` bytes may take their time. Raises as `ask`."""
        patience = self.config.connect_timeout + 3 * self.config.timeout + size / SLOWEST
        try:
            async with asyncio.timeout(patience):
                return await asyncio.get_running_loop().run_in_executor(self._pool, call)
        except TimeoutError as error:
            raise Unanswered(f"{self.where}: {what}: no answer within {patience:.0f} s", sent=True) from error
        except BackendError:
            raise
        except Exception as error:
            raise explain(self.where, what, error) from error

    async def finish(self, work: Awaitable[object]) -> None:
        """Do this also if the caller is being cancelled; that it fails is its own affair."""
        task = asyncio.ensure_future(work)
        self._closing.add(task)
        task.add_done_callback(self._done)
        with suppress(BackendError):
            await asyncio.shield(task)

    async def close(self) -> None:
        """Give threads and connections back. Waits for requests under way, which have their time-outs."""
        if self._closing:
            await asyncio.wait([*self._closing], timeout=self.config.timeout)
        await asyncio.get_running_loop().run_in_executor(None, self._shut)

    def _done(self, task: asyncio.Future[Any]) -> None:
        self._closing.discard(task)
        if not task.cancelled():
            task.exception()  # seen

    def _shut(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._client.close()


@cache
def _session() -> botocore.session.Session:
    """One for all stores: each would read the library's descriptions of services anew."""
    # At its lower levels the library logs requests with their signatures and tokens.
    logging.getLogger("botocore").setLevel(logging.WARNING)
    session = botocore.session.Session()
    # Nothing of the user's own files and no metadata service decides what is done here.
    for name in ("config_file", "credentials_file"):
        session.set_config_variable(name, os.devnull)
    return session


_ONE_BY_ONE = threading.Lock()
"""Sessions may not make clients in several threads at once."""


def connect(config: S3Config, credentials: Credentials) -> Any:
    """The library's client; nothing is sent yet. Blocking. Raises Misconfigured, BackendError."""
    options = Config(
        region_name=config.region,
        signature_version="s3v4",
        connect_timeout=config.connect_timeout,
        read_timeout=config.timeout,
        max_pool_connections=THREADS,
        retries={"total_max_attempts": 1, "mode": "standard"},
        s3={"addressing_style": "virtual" if config.virtual_host else "path"},
        # Newer checksums in trailers are unknown to other servers; ours lie in the objects.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        ignore_configured_endpoint_urls=True,
    )
    verify = None if config.ca_file is None else str(config.ca_file)
    if verify is not None and not config.ca_file.is_file():  # type: ignore[union-attr]
        raise Misconfigured("ca_file", f"{verify} is no file")
    try:
        with _ONE_BY_ONE:
            return _session().create_client(
                "s3",
                region_name=config.region,
                endpoint_url=config.endpoint or None,
                aws_access_key_id=credentials.access_key,
                aws_secret_access_key=credentials.secret_key,
                aws_session_token=credentials.token,
                verify=verify,
                config=options,
            )
    except Exception as error:
        raise explain(config.where, "opening", error) from error
