"""The one connection to the server: made when needed, made again when lost, each wait with an end.

A request counts as lost when for `timeout` seconds no answer to any request arrived, not when it is slow itself: on a
slow uplink a block waits for those before it. Whoever notices ends the connection, and all who wait on it know at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine
from typing import Any, TypeVar

import asyncssh

from fractal.api.context import Context
from fractal.api.errors import BackendError, Misconfigured
from fractal_sftp.config import SftpConfig
from fractal_sftp.identity import public_line

T = TypeVar("T")

FIRST_PAUSE, LONGEST_PAUSE = 0.25, 5.0
"""Seconds between attempts to connect: doubled from the first to the longest."""
PATIENCE = 10
"""How many time-outs long one request may take while others are answered."""
KEEPALIVE = 5.0
"""Seconds of silence after which the server is asked for a sign; the third unanswered one ends the connection."""
CLOSING = 2.0

# Deterministic, so that the same key is offered each time: a pin is of one key.
_HOST_KEYS = [
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "rsa-sha2-512",
    "rsa-sha2-256",
]
# The fastest in OpenSSL first; what is stored is sealed already.
_CIPHERS = [
    "aes128-gcm@openssh.com",
    "aes256-gcm@openssh.com",
    "chacha20-poly1305@openssh.com",
    "aes256-ctr",
]


class Unanswered(BackendError):
    """There is no connection, or it was lost: what was asked last may or may not have been done."""

    def __init__(self, message: str) -> None:
        super().__init__(message, retryable=True)


class Session:
    """One connection, for as long as it lasts. File handles belong to it."""

    def __init__(
        self,
        context: Context,
        config: SftpConfig,
        connection: asyncssh.SSHClientConnection,
        sftp: asyncssh.SFTPClient,
    ) -> None:
        self.sftp = sftp
        self._connection = connection
        self._clock = context.clock
        self._timeout = config.timeout
        self._where = config.where
        self._heard = context.clock.boottime()
        self._aborted = False

    @property
    def alive(self) -> bool:
        """Whether it can be used, as far as is known."""
        return not (self._aborted or self._connection.is_closed())

    def hear(self) -> None:
        """Note that the server answered something."""
        self._heard = self._clock.boottime()

    async def ask(self, request: Awaitable[T]) -> T:
        """A request's result. Raises asyncssh.SFTPError as the server said it, Unanswered if it said nothing."""
        task = asyncio.ensure_future(request)
        begun = self._clock.boottime()
        try:
            while not task.done():
                end = min(max(begun, self._heard) + self._timeout, begun + PATIENCE * self._timeout)
                left = end - self._clock.boottime()
                if left <= 0:
                    self.abort()
                    raise Unanswered(f"{self._where}: no answer within {self._timeout:g} s")
                await asyncio.wait([task], timeout=left)
            result = task.result()
        except (asyncssh.SFTPConnectionLost, asyncssh.SFTPNoConnection) as error:
            raise Unanswered(f"{self._where}: the connection was lost") from error
        except asyncssh.SFTPError:
            self.hear()
            raise
        except (asyncssh.Error, OSError) as error:
            raise Unanswered(f"{self._where}: the connection was lost: {_reason(error)}") from error
        finally:
            task.cancel()
        self.hear()
        return result

    def abort(self) -> None:
        """End it at once: all that waits on it fails."""
        self._aborted = True  # the connection itself knows only when the loop has run
        self._connection.abort()

    async def close(self) -> None:
        """End it in order, or at once if that takes long."""
        self._connection.close()
        try:
            async with asyncio.timeout(CLOSING):
                await self._connection.wait_closed()
        except TimeoutError:
            self.abort()


class _Client(asyncssh.SSHClient):
    """Trusts one host key."""

    def __init__(self, fingerprint: str) -> None:
        self._fingerprint = fingerprint
        self.offered = ""

    # The library's name and arguments.
    def validate_host_public_key(
        self,
        host: str,  # noqa: ARG002
        addr: str,  # noqa: ARG002
        port: int,  # noqa: ARG002
        key: asyncssh.SSHKey,
    ) -> bool:
        self.offered = f"{key.get_algorithm()} {key.get_fingerprint()}"
        return key.get_fingerprint() == self._fingerprint


class Line:
    """Gives out the session. `close` it in the end."""

    def __init__(self, context: Context, config: SftpConfig, key: asyncssh.SSHKey) -> None:
        self._context = context
        self._config = config
        self._key = key
        self._session: Session | None = None
        self._connecting: asyncio.Task[Session] | None = None
        self._background: set[asyncio.Task[None]] = set()
        self._failures = 0
        self._not_before = 0.0

    async def session(self) -> Session:
        """The connection; callers that need it at once share the attempt. Raises Unanswered, Misconfigured."""
        if self._session is not None and self._session.alive:
            return self._session
        if self._connecting is None or self._connecting.done():
            self._connecting = asyncio.create_task(self._connect())
            # Perhaps nobody waits any more when it fails.
            self._connecting.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await asyncio.shield(self._connecting)

    async def finish(self, work: Coroutine[Any, Any, None]) -> None:
        """Do `work` to its end, also when the caller is cancelled meanwhile. It must have an end of its own."""
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        await asyncio.shield(task)

    async def close(self) -> None:
        """End everything."""
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait([self._connecting])
        if self._background:
            await asyncio.wait(self._background, timeout=CLOSING)
        if self._session is not None:
            await self._session.close()
        if self._background:
            await asyncio.wait(self._background)

    async def _connect(self) -> Session:
        pause = self._not_before - self._context.clock.boottime()
        if pause > 0:
            await self._context.clock.sleep(pause)
        try:
            self._session = await self._dial()
        except BackendError:
            pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(self._failures, 10))
            self._failures += 1
            self._not_before = self._context.clock.boottime() + pause
            raise
        self._failures = 0
        return self._session

    async def _dial(self) -> Session:
        config, client = self._config, _Client(self._config.fingerprint)
        try:
            async with asyncio.timeout(config.connect_timeout):
                connection = await self._log_in(client)
                try:
                    sftp = await connection.start_sftp_client(path_encoding=None)
                except BaseException:
                    connection.abort()
                    raise
        except TimeoutError as error:
            raise Unanswered(f"{config.where}: no connection within {config.connect_timeout:g} s") from error
        except asyncssh.HostKeyNotVerifiable as error:
            raise self._wrong_server(client.offered) from error
        except asyncssh.PermissionDenied as error:
            raise Misconfigured(
                "user",
                f"{config.where} does not let this device in: add this line to ~{config.user}/.ssh/authorized_keys there:"
                f" {public_line(self._key)}",
            ) from error
        except (asyncssh.SFTPError, asyncssh.ChannelOpenError) as error:
            raise BackendError(
                f"{config.where}: logged in, but there is no SFTP: allow the subsystem sftp there ({_reason(error)})"
            ) from error
        except (asyncssh.Error, OSError) as error:
            raise Unanswered(f"{config.where}: no connection: {_reason(error)}") from error
        return Session(self._context, config, connection, sftp)

    async def _log_in(self, client: _Client) -> asyncssh.SSHClientConnection:
        config = self._config
        # Nothing of the account's own SSH set-up plays a part: no configuration, agent, known hosts or certificates.
        return await asyncssh.connect(
            config.host,
            config.port,
            username=config.user,
            client_factory=lambda: client,
            client_keys=[self._key],
            preferred_auth=["publickey"],
            config=None,
            agent_path=None,
            known_hosts=lambda *_: ([], [], []),
            x509_trusted_certs=[],
            x509_trusted_cert_paths=[],
            server_host_key_algs=_HOST_KEYS,
            encryption_algs=_CIPHERS,
            compression_algs=None,
            gss_host=None,
            keepalive_interval=KEEPALIVE,
            keepalive_count_max=3,
        )

    def _wrong_server(self, offered: str) -> Misconfigured:
        config = self._config
        check = "run `ssh-keygen -lf` on its /etc/ssh/ssh_host_*_key.pub, on the server itself"
        if not config.fingerprint:
            return Misconfigured(
                "fingerprint",
                f"{config.where} shows the host key {offered}. If that is its own ({check}), repeat with"
                f" fingerprint={offered.rpartition(' ')[2]}. This device's line for ~{config.user}/.ssh/authorized_keys"
                f" there: {public_line(self._key)}",
            )
        return Misconfigured(
            "fingerprint",
            f"{config.where} shows the host key {offered}, not {config.fingerprint}: the server was set up anew, or"
            f" somebody is between. Nothing was sent. If the key is its own ({check}), change fingerprint",
        )


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return getattr(error, "reason", "") or str(error) or type(error).__name__
