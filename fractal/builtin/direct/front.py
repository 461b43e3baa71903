"""One TLS connection at the device: HTTP/1.1 requests, checked, told where they come from, and streamed to the app.

Bodies pass as they are on the wire (chunked ones too), at most one chunk at a time in hand. Each request has a connection
of its own to the app: it finds the app where it is now, never runs into a connection that the app has just closed, and
requests of different clients never share one.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable

from fractal.api.errors import BackendError
from fractal.builtin.direct import http1
from fractal.builtin.direct.config import DirectConfig
from fractal.builtin.direct.proxy import Address
from fractal.builtin.direct.sockets import CHUNK, Session, connect, stop
from fractal.builtin.direct.wire import Wire, tls_wire

KEEP_ALIVE = 75.0
"""Seconds for which a connection without a request stays open."""
RETRY_INTERVAL = 0.1
LINGER = 5.0
"""Seconds in which a client may finish a body that the app has answered without reading it."""


class Front:
    """Serves one client connection."""

    def __init__(
        self,
        *,
        config: DirectConfig,
        logger: logging.Logger,
        client: str,
        endpoint: Callable[[str], Address | None],
    ) -> None:
        self._config = config
        self._logger = logger
        self._client = client
        self._endpoint = endpoint

    async def run(
        self, session: Session, tls: ssl.SSLContext, name_of: Callable[[ssl.SSLContext], str | None]
    ) -> None:
        """Take the session's socket over, shake hands, and serve requests until either side has had enough.

        `name_of` gives the route of the TLS context that the handshake chose, None if it is the wrong one.
        """
        sock = socket.socket(fileno=session.sock.detach())
        wire, chosen = await tls_wire(sock, tls, self._config.greeting_timeout, self._config.idle_timeout)
        try:
            name = name_of(chosen)
            while name is not None and await self._request(wire, name, session):
                session.busy = False
        except http1.HttpError as error:
            await self._refuse(wire, error)
        except EOFError:
            wire.abort()  # one side ended amid a message: the other must not take it for whole
        except BaseException:
            wire.abort()
            raise
        finally:
            await wire.close()

    async def _refuse(self, wire: Wire, error: http1.HttpError) -> None:
        self._logger.debug("request of %s: %d %s", self._client, error.status, error)
        if wire.answered:
            wire.abort()
        else:
            await wire.send(http1.refusal(error.status, str(error)))

    async def _request(self, wire: Wire, name: str, session: Session) -> bool:
        """Serve one request; whether another may follow on the connection. Raises HttpError, EOFError, OSError."""
        wire.answered = False
        head = await wire.head(first=KEEP_ALIVE, rest=self._config.greeting_timeout)
        if head is None:
            return False
        session.busy = True
        request = http1.parse_request(head)
        if http1.host_of(request) != name:
            raise http1.HttpError(421, f"this connection was made for {name}")
        framing = http1.request_framing(request)
        app = await self._connect(name)
        try:
            await app.send(http1.forwarded_request(request, self._client))
            body = asyncio.create_task(self._body(wire, app, framing))
            try:
                return await self._answer(wire, app, request, body)
            finally:
                await stop([body])
        finally:
            await app.close()

    async def _connect(self, name: str) -> Wire:
        """A connection to the app, waiting up to `hold` while it (re)starts. Raises HttpError."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._config.hold
        while True:
            endpoint = self._endpoint(name)
            if endpoint is None:
                raise EOFError  # no longer ours: the client shall ask the gateway again
            try:
                sock = await connect(*endpoint, timeout=self._config.connect_timeout)
            except BackendError as error:
                if loop.time() >= until:
                    self._logger.warning("route %s: %s", name, error)
                    raise http1.HttpError(502, "the app does not answer") from error
                await asyncio.sleep(RETRY_INTERVAL)
            else:
                reader, writer = await asyncio.open_connection(sock=sock, limit=CHUNK)
                return Wire(reader, writer, self._config.idle_timeout)

    async def _body(self, wire: Wire, app: Wire, framing: http1.Framing) -> None:
        """Pass the request's body on. An app that stops reading is no error: it may have answered already."""
        deaf = False

        async def send(data: bytes) -> None:
            nonlocal deaf
            if not deaf:
                try:
                    await app.send(data)
                except OSError:
                    deaf = True

        await wire.pass_body(framing, send)

    async def _answer(self, wire: Wire, app: Wire, request: http1.Request, body: asyncio.Task[None]) -> bool:
        answering = asyncio.create_task(self._respond(wire, app, request))
        try:
            done, _ = await asyncio.wait({answering, body}, return_when=asyncio.FIRST_COMPLETED)
            if body in done:
                body.result()
            status, keep = await answering
            if status == 101:
                await body
                await self._tunnel(wire, app)
                return False
            if not body.done():
                await asyncio.wait({body}, timeout=LINGER)
            return keep and body.done() and body.exception() is None
        finally:
            await _end(answering)

    async def _respond(self, wire: Wire, app: Wire, request: http1.Request) -> tuple[int, bool]:
        """Pass the app's response on, interim ones first; its status and whether the connection may be used again."""
        while True:
            try:
                head = await app.head(first=self._config.idle_timeout, rest=self._config.idle_timeout)
            except (OSError, EOFError) as error:
                raise http1.HttpError(502, "the app hung up instead of answering") from error
            if head is None:
                raise http1.HttpError(502, "the app hung up instead of answering")
            response = http1.parse_response(head)
            framing = http1.response_framing(response, request.method)
            close = http1.wants_close(request) or framing is http1.End.CLOSE
            if response.status == 101 and not http1.wants_websocket(request):
                raise http1.HttpError(502, "the app switched protocols unasked")
            if response.status >= 200 or response.status == 101:
                wire.answered = True
            await wire.send(http1.forwarded_response(response, close=close))
            if response.status >= 200 or response.status == 101:
                break
        if response.status == 101:
            return response.status, False
        await app.pass_body(framing, wire.send)
        return response.status, not close

    async def _tunnel(self, wire: Wire, app: Wire) -> None:
        """Pass bytes both ways until one side ends."""

        async def pump(source: Wire, send: Callable[[bytes], Awaitable[None]]) -> None:
            while data := await source.some(CHUNK):
                await send(data)

        pumps = {asyncio.create_task(pump(wire, app.send)), asyncio.create_task(pump(app, wire.send))}
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await stop(pumps)


async def _end(task: asyncio.Task[tuple[int, bool]]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
