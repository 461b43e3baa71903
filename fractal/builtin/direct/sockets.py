"""Listening, connecting and joining sockets, with limits on number and time and without buffers of our own.

Sockets are driven directly instead of through asyncio's transports: one chunk is in hand at a time, so back-pressure is
the kernel's, and exactly as many bytes are read as belong to a header, so TLS can begin on the same socket.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import resource
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from fractal.api.errors import BackendError, FractalError
from fractal.builtin.direct.proxy import Address

CHUNK = 64 * 1024
_BACKLOG = 512
_FILES_OF_OTHERS = 256
_PAUSE_WITHOUT_DESCRIPTORS = 0.2


def bind(host: str, port: int, purpose: str, *, datagram: bool = False) -> socket.socket:
    """A non-blocking socket bound to `host` and `port`, listening unless it is for datagrams.

    Raises BackendError that names address and port.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM if datagram else socket.SOCK_STREAM)
        family, kind, protocol, _name, address = found[0]
        sock = socket.socket(family, kind, protocol)
    except OSError as error:
        raise BackendError(
            f"direct transport: cannot listen on {host!r} for {purpose}: {error.strerror}"
        ) from error
    try:
        sock.setblocking(False)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if address[0] == "::" else 1)
        if not datagram:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        if not datagram:
            sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        reason = {
            errno.EADDRINUSE: "it is in use: stop the other program or choose another port",
            errno.EACCES: "not allowed: ports below 1024 need CAP_NET_BIND_SERVICE",
        }.get(error.errno or 0, error.strerror)
        kind_of_port = "UDP" if datagram else "TCP"
        message = (
            f"direct transport: cannot listen on {kind_of_port} port {port} of {host} for {purpose}: {reason}"
        )
        raise BackendError(message, retryable=error.errno == errno.EADDRINUSE) from error
    return sock


def plain_host(host: str) -> str:
    """An address as it is compared and told: without a zone, and IPv4 as such also where a socket serves both families."""
    return host.partition("%")[0].removeprefix("::ffff:") if "." in host else host.partition("%")[0]


def affordable(most: int) -> int:
    """`most` connections, or as many as leave the rest of the agent the files that it needs.

    A connection takes two descriptors, and up to two ports of a device are busy at one time.
    """
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return most if soft == resource.RLIM_INFINITY else max(8, min(most, (soft - _FILES_OF_OTHERS) // 4))


async def connect(host: str, port: int, *, timeout: float, source: str = "") -> socket.socket:
    """A non-blocking TCP connection, tried over every address of `host`. Raises BackendError (retryable)."""
    loop = asyncio.get_running_loop()
    failure: OSError = OSError(errno.EHOSTUNREACH, "no address")
    try:
        async with asyncio.timeout(timeout):
            for family, kind, protocol, _name, address in await loop.getaddrinfo(
                host, port, type=socket.SOCK_STREAM
            ):
                sock = socket.socket(family, kind, protocol)
                try:
                    sock.setblocking(False)
                    if source:
                        sock.bind((source, 0))
                    await loop.sock_connect(sock, address)
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    return sock
                except OSError as error:
                    sock.close()
                    failure = error
                except BaseException:
                    sock.close()
                    raise
    except TimeoutError as error:
        raise BackendError(f"{host} port {port} did not answer in {timeout:g} s", retryable=True) from error
    except OSError as error:
        failure = error
    except ValueError as error:
        raise BackendError(f"{host[:100]!r} is no host name") from error
    raise BackendError(f"{host} port {port}: {failure.strerror or failure}", retryable=True) from failure


async def receive_exactly(sock: socket.socket, count: int) -> bytes:
    """`count` bytes and not one more. Raises BackendError if the connection ends before."""
    loop = asyncio.get_running_loop()
    data = bytearray()
    while len(data) < count:
        piece = await loop.sock_recv(sock, count - len(data))
        if not piece:
            raise BackendError("the connection ended early", retryable=True)
        data += piece
    return bytes(data)


@dataclass(slots=True)
class Traffic:
    """Bytes that went through, counted at the gateway or device that holds it."""

    sent: int = 0
    received: int = 0


async def join(
    client: socket.socket, other: socket.socket, traffic: Traffic, *, idle: float, half_open: float
) -> None:
    """Pass bytes both ways until both have ended, an error, `idle` seconds of silence, or `half_open` after one end."""
    loop = asyncio.get_running_loop()
    last = loop.time()

    async def pump(source: socket.socket, drain: socket.socket, outward: bool) -> None:
        nonlocal last
        while data := await loop.sock_recv(source, CHUNK):
            await loop.sock_sendall(drain, data)
            last = loop.time()
            if outward:
                traffic.sent += len(data)
            else:
                traffic.received += len(data)
        drain.shutdown(socket.SHUT_WR)

    running = {
        asyncio.create_task(pump(client, other, True)),
        asyncio.create_task(pump(other, client, False)),
    }
    try:
        while running:
            limit = idle if len(running) == 2 else half_open
            left = last + limit - loop.time()
            if left <= 0:
                return
            done, running = await asyncio.wait(running, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
                last = loop.time()
    finally:
        await stop(running)


async def stop(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel tasks and wait for them; what they end with no longer matters."""
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class Session:
    """One accepted connection. Its task ends when the connection does; cancelling the task closes it."""

    def __init__(self, sock: socket.socket, client: Address) -> None:
        self.sock = sock
        self.client = client
        self.task: asyncio.Task[None] | None = None
        self.route = ""
        """Key of the route that it was led to; "" before."""
        self.device = ""
        """On a gateway: the device at its other end. On a device: the gateway."""
        self.busy = False
        """Whether a request is under way, or about to come: the first one after the connection was made."""


class Listener:
    """Accepts connections on a bound socket and runs `handle` for each, within limits, until closed."""

    def __init__(
        self,
        sock: socket.socket,
        handle: Callable[[Session], Awaitable[None]],
        *,
        logger: logging.Logger,
        most: int,
        most_per_client: int,
    ) -> None:
        self._sock = sock
        self._handle = handle
        self._logger = logger
        self._most = affordable(most)
        self._most_per_client = most_per_client
        self._per_client: Counter[str] = Counter()
        self.sessions: set[Session] = set()
        self._accepting = asyncio.create_task(self._accept())

    @property
    def port(self) -> int:
        """The port that it is bound to."""
        port: int = self._sock.getsockname()[1]
        return port

    def close_sessions(self, unwanted: Callable[[Session], bool]) -> None:
        """Close the connections that `unwanted` is true of."""
        for session in list(self.sessions):
            if session.task is not None and unwanted(session):
                session.task.cancel()

    async def close(self) -> None:
        """Stop listening and close every connection."""
        await stop([self._accepting])
        self._sock.close()
        await stop([session.task for session in self.sessions if session.task is not None])

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, address = await loop.sock_accept(self._sock)
            except OSError as error:
                # Aborted by the client, or out of descriptors: neither is a reason to stop listening.
                self._logger.warning("accepting on port %d: %s", self.port, error.strerror)
                await asyncio.sleep(_PAUSE_WITHOUT_DESCRIPTORS)
                continue
            self._admit(sock, (plain_host(address[0]), address[1]))

    def _admit(self, sock: socket.socket, client: Address) -> None:
        if len(self.sessions) >= self._most or self._per_client[client[0]] >= self._most_per_client:
            self._logger.debug("refused %s: too many connections on port %d", client[0], self.port)
            sock.close()
            return
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        session = Session(sock, client)
        self.sessions.add(session)
        self._per_client[client[0]] += 1
        session.task = asyncio.create_task(self._run(session))
        session.task.add_done_callback(lambda _task: self._forget(session))

    async def _run(self, session: Session) -> None:
        try:
            await self._handle(session)
        except (OSError, FractalError) as error:
            # Whatever one client or device does ends its own connection and nothing else.
            self._logger.debug("connection of %s on port %d: %s", session.client[0], self.port, error)

    def _forget(self, session: Session) -> None:
        self.sessions.discard(session)
        self._per_client[session.client[0]] -= 1
        if not self._per_client[session.client[0]]:
            del self._per_client[session.client[0]]
        session.sock.close()
