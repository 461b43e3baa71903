"""The gateway's end: leads names and ports to devices without decrypting anything."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from fractal.api.context import Context
from fractal.api.errors import BackendError, Conflict, FractalError, InvalidInput
from fractal.api.transport import Peer, Target
from fractal.builtin.direct import http1, proxy
from fractal.builtin.direct.config import DirectConfig
from fractal.builtin.direct.hello import HelloReader, server_name
from fractal.builtin.direct.peers import Health, raise_together, read_contact, route_key
from fractal.builtin.direct.sockets import (
    CHUNK,
    Listener,
    Session,
    bind,
    connect,
    join,
    receive_exactly,
    stop,
)
from fractal.builtin.direct.udp import GatewayPort

RETRY_INTERVAL = 0.25
_NO_SUCH_NAME = bytes([21, 3, 1, 0, 2, 2, 112])
"""A fatal TLS alert, unrecognized_name (RFC 6066, section 3): lets the client say what is wrong."""
_MAX_REQUEST = 16 * 1024


_Handler = Callable[[Session], Awaitable[None]]
_Attempt = asyncio.Task[tuple[socket.socket, bytes]]


class Gateway:
    """Public ports, the table of targets, and the connections in between."""

    def __init__(self, context: Context, config: DirectConfig) -> None:
        self._context = context
        self._config = config
        self._targets: dict[str, Target] = {}
        self._changed = asyncio.Event()
        self._listeners: dict[str, Listener] = {}
        self._datagrams: dict[str, GatewayPort] = {}
        self._peers: dict[str, Peer] = {}
        self._probes: dict[str, asyncio.Task[None]] = {}
        self.health: dict[str, Health] = {}

    def open(self) -> None:
        """Bind the configured public ports. Raises BackendError naming the port; `close` is still to be called."""
        if self._config.https_port:
            self._listen("https", self._config.https_port, "TLS from clients", self._serve_tls)
        if self._config.http_port:
            self._listen("http", self._config.http_port, "the redirect to TLS", self._redirect)

    async def close(self) -> None:
        """Close every port, connection and probe."""
        await stop(self._probes.values())
        for port in self._datagrams.values():
            port.close()
        for listener in self._listeners.values():
            await listener.close()

    async def apply(self, peers: Sequence[Peer], targets: Sequence[Target]) -> None:
        """Make exactly these peers and targets stand. What is possible is done before problems are raised."""
        table, problems = _table(targets)
        old, self._targets = self._targets, table
        self._apply_peers({peer.device: peer for peer in peers})
        for key in old.keys() | table.keys():
            if old.get(key) != table.get(key):
                self._close_replaced(key, table.get(key))
        problems += await self._apply_ports(table)
        self._changed.set()
        self._changed = asyncio.Event()
        raise_together(problems)

    def _close_replaced(self, key: str, target: Target | None) -> None:
        """Close connections that lead elsewhere now; those of an app that is changing hands stay until it has."""
        if target is not None and not target.device:
            return
        keep = target.device if target is not None else ""
        for listener in self._listeners.values():
            listener.close_sessions(lambda s: s.route == key and bool(s.device) and s.device != keep)
        if port := self._datagrams.get(key):
            port.forget(keep)

    async def _apply_ports(self, table: dict[str, Target]) -> list[FractalError]:
        problems: list[FractalError] = []
        for key in [key for key in self._listeners if key.startswith("tcp:") and key not in table]:
            await self._listeners.pop(key).close()
        for key in [key for key in self._datagrams if key not in table]:
            self._datagrams.pop(key).close()
        for key, target in table.items():
            kind, _, port = key.partition(":")
            try:
                if kind == "tcp" and key not in self._listeners:
                    self._listen(key, int(port), f"route {target.name} of app {target.app}", self._serve_tcp)
                elif kind == "udp" and key not in self._datagrams:
                    self._datagrams[key] = await GatewayPort.open(
                        self._context,
                        self._config,
                        int(port),
                        partial(self._target, key),
                        self._note,
                    )
            except BackendError as error:
                problems.append(error)
        return problems

    def _listen(self, key: str, port: int, purpose: str, handle: _Handler) -> None:
        self._listeners[key] = Listener(
            bind(self._config.listen, port, purpose),
            handle,
            logger=self._context.logger,
            most=self._config.max_connections,
            most_per_client=self._config.max_per_client,
        )

    async def _serve_tls(self, session: Session) -> None:
        loop = asyncio.get_running_loop()
        reader = HelloReader()
        async with asyncio.timeout(self._config.greeting_timeout):
            body = None
            while body is None:
                data = await loop.sock_recv(session.sock, CHUNK)
                if not data:
                    return
                body = reader.feed(data)
        name = server_name(body)
        if name is None or ":" in name or name not in self._targets:
            await loop.sock_sendall(session.sock, _NO_SUCH_NAME)
            return
        await self._lead(session, name, bytes(reader.received))

    async def _serve_tcp(self, session: Session) -> None:
        await self._lead(session, f"tcp:{session.sock.getsockname()[1]}", b"")

    async def _lead(self, session: Session, key: str, greeting: bytes) -> None:
        """Bring a connection to the device behind `key`, and keep it there until either end or a switch ends it."""
        device, other, answer = await self._reach(session, key, greeting)
        session.route, session.device = key, device
        try:
            traffic = self._health(device).traffic
            traffic.sent += len(greeting)
            traffic.received += len(answer)
            await asyncio.get_running_loop().sock_sendall(session.sock, answer)
            await join(
                session.sock,
                other,
                traffic,
                idle=self._config.idle_timeout,
                half_open=self._config.half_open_timeout,
            )
        finally:
            other.close()

    async def _reach(self, session: Session, key: str, greeting: bytes) -> tuple[str, socket.socket, bytes]:
        """Connect to the key's device, waiting up to `hold` for an app that changes hands or does not answer yet.

        Raises BackendError when the time is over or the route is gone.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + self._config.hold
        problem = f"route {key} has no device at the moment"
        while (target := self._targets.get(key)) is not None and (left := until - loop.time()) > 0:
            changed = asyncio.create_task(self._wait_for(self._changed))
            attempt = asyncio.create_task(self._try(session, target, greeting)) if target.device else None
            try:
                await asyncio.wait(
                    [changed, attempt] if attempt else [changed],
                    timeout=left,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if attempt is not None and attempt.done() and self._targets.get(key) == target:
                    try:
                        other, answer = attempt.result()
                    except (BackendError, OSError) as error:
                        problem = str(error)
                        self._health(target.device).detail = problem
                    else:
                        attempt = None
                        return target.device, other, answer
                    await asyncio.wait([changed], timeout=min(RETRY_INTERVAL, left))
            finally:
                changed.cancel()
                if attempt is not None:
                    await _abandon(attempt)
        raise BackendError(f"gave up on {session.client[0]}: {problem}")

    async def _try(self, session: Session, target: Target, greeting: bytes) -> tuple[socket.socket, bytes]:
        """One attempt: connect, say who comes, pass the greeting on and wait for the device's first bytes.

        A device that does not serve the name hangs up without a word. Nothing but the ClientHello was sent by then, so
        the attempt can be repeated, there or elsewhere, unnoticed.
        """
        loop = asyncio.get_running_loop()
        if target.device not in self._peers:
            raise BackendError(f"device {target.device} is none that this gateway serves", retryable=True)
        contact = read_contact(target.device, target.contact)
        header = proxy.encode(
            proxy.Header(
                client=session.client,
                server=session.sock.getsockname()[:2],
                route=target.name,
                token=contact.token,
                gateway=self._context.device,
            )
        )
        limit = self._config.connect_timeout
        other = await connect(contact.host, contact.port, timeout=limit, source=self._config.source)
        try:
            async with asyncio.timeout(limit):
                await loop.sock_sendall(other, header + greeting)
                answer = await loop.sock_recv(other, CHUNK) if greeting else b""
            if greeting and not answer:
                raise BackendError(f"device {target.device} does not serve {target.name}", retryable=True)
            return other, answer
        except TimeoutError as error:
            other.close()
            raise BackendError(
                f"device {target.device} did not answer in {limit:g} s", retryable=True
            ) from error
        except BaseException:
            other.close()
            raise

    @staticmethod
    async def _wait_for(event: asyncio.Event) -> None:
        await event.wait()

    async def _redirect(self, session: Session) -> None:
        loop = asyncio.get_running_loop()
        head = bytearray()
        async with asyncio.timeout(self._config.greeting_timeout):
            while b"\r\n\r\n" not in head:
                data = await loop.sock_recv(session.sock, CHUNK)
                head += data
                if not data or len(head) > _MAX_REQUEST:
                    return
            answer = self._redirection(bytes(head[: head.index(b"\r\n\r\n") + 4]))
            await loop.sock_sendall(session.sock, answer)
            session.sock.shutdown(socket.SHUT_WR)
            while await loop.sock_recv(session.sock, CHUNK):
                pass  # closing with unread bytes would reset the connection and lose the answer

    def _redirection(self, head: bytes) -> bytes:
        try:
            request = http1.parse_request(head)
            name = http1.host_of(request)
        except http1.HttpError as error:
            return http1.refusal(error.status, str(error))
        if name not in self._targets:
            return http1.refusal(421, "this name is not served here")
        path = request.target if request.target.startswith(b"/") else b"/"
        if not path.isascii():
            return http1.refusal(400, "the request target is not ASCII")
        port = "" if self._config.https_port in (0, 443) else f":{self._config.https_port}"
        return http1.redirect(f"https://{name}{port}{path.decode('ascii')}")

    def _target(self, key: str) -> Target | None:
        return self._targets.get(key)

    def _note(self, device: str, sent: int, received: int) -> None:
        traffic = self._health(device).traffic
        traffic.sent += sent
        traffic.received += received

    def _health(self, device: str) -> Health:
        return self.health.get(device) or Health(device)

    def _apply_peers(self, peers: dict[str, Peer]) -> None:
        gone = self._peers.keys() - peers.keys()
        for device in gone:
            self._probes.pop(device).cancel()
            del self.health[device]
        for listener in self._listeners.values():
            listener.close_sessions(lambda s: s.device in gone)
        for device, peer in peers.items():
            if self._peers.get(device) != peer:
                if device in self._probes:
                    self._probes.pop(device).cancel()
                self.health.setdefault(device, Health(device))
                self._probes[device] = asyncio.create_task(self._probe(peer))
        self._peers = peers

    async def _probe(self, peer: Peer) -> None:
        """Ask again and again whether a device's agent answers, not only its kernel."""
        health = self.health[peer.device]
        while True:
            try:
                contact = read_contact(peer.device, peer.contact)
                health.endpoint = f"{contact.host}:{contact.port}"
                limit = self._config.connect_timeout
                sock = await connect(contact.host, contact.port, timeout=limit, source=self._config.source)
                header = proxy.Header(client=None, token=contact.token, gateway=self._context.device)
                with sock:
                    async with asyncio.timeout(limit):
                        await asyncio.get_running_loop().sock_sendall(sock, proxy.encode(header))
                        await receive_exactly(sock, len(proxy.ANSWER))
                health.alive(self._context.clock.boottime())
            except TimeoutError:
                health.lost("the device's port is open but its agent does not answer")
            except (BackendError, OSError) as error:
                health.lost(str(error))
            await self._context.clock.sleep(self._config.probe_interval)


def _table(targets: Sequence[Target]) -> tuple[dict[str, Target], list[FractalError]]:
    """Targets by key. A name wanted twice stays with the first; that and malformed names are problems."""
    table: dict[str, Target] = {}
    problems: list[FractalError] = []
    for target in targets:
        try:
            key = route_key(target.kind, target.name)
        except InvalidInput as error:
            problems.append(error)
            continue
        if (first := table.setdefault(key, target)) is not target and first != target:
            problems.append(
                Conflict(
                    f"route {target.name} is wanted by app {first.app} and app {target.app}; the first has it"
                )
            )
    return table, problems


async def _abandon(attempt: _Attempt) -> None:
    """Cancel an attempt; should it have succeeded in the meantime, close what it connected."""
    attempt.cancel()
    (outcome,) = await asyncio.gather(attempt, return_exceptions=True)
    if isinstance(outcome, tuple):
        outcome[0].close()
