"""Requests to a homeserver: one attempt each, bounded in time and size, with an error that says what to do.

nio carries them. Its own calls above `send` are not used: they sleep for as long as the homeserver says when it is busy
(leases.md, section 8: a read's age would be hidden), keep no unknown field of an event, and fill no gap of a timeline.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp
import nio

from fractal.api.errors import Ambiguous, BackendError, Misconfigured

BODY_LIMIT = 16 << 20
"""Bytes of an answer at most."""
CLIENT = "_matrix/client/v3"
LONGEST_WAIT = 24 * 3600.0
"""A longer `Retry-After` is not believed."""


class Refused(BackendError):
    """The homeserver said no."""

    def __init__(self, message: str, *, status: int, errcode: str, body: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.status = status
        self.errcode = errcode
        self.body = body


class Busy(BackendError):
    """The homeserver asks to wait (429)."""

    code = "busy"

    def __init__(self, message: str, wait: float) -> None:
        super().__init__(message, retryable=True)
        self.wait = wait
        """Seconds."""


class Wire:
    """A connection pool to one homeserver. Belongs to one event loop."""

    def __init__(self, url: str, *, timeout: float, ca_file: str = "") -> None:
        self.url = url
        self._timeout = timeout
        self._client = nio.AsyncClient(
            url,
            config=nio.AsyncClientConfig(max_limit_exceeded=0, max_timeouts=0, request_timeout=timeout),
            ssl=_tls(ca_file) if url.startswith("https:") else None,
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def call(
        self,
        method: str,
        path: Sequence[str],
        *,
        token: str = "",
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        wait: float = 0.0,
        write: bool = False,
        base: str = CLIENT,
    ) -> dict[str, Any]:
        """One request, `wait` seconds more than usual if the homeserver may hold it; its answer (a list as {"list": ...}).

        Raises Refused, Busy, Ambiguous if a `write` may have happened or not, BackendError (retryable).
        """
        what = f"{self.url}: {method} {'/'.join(part for part in path if not part.startswith(('!', '$')))}"
        target = "/" + "/".join([base, *(quote(part, safe="") for part in path)])
        target += f"?{urlencode(query)}" if query else ""
        headers = {"Accept": "application/json"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        data = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            data = json.dumps(body, separators=(",", ":"), allow_nan=False)
        limit = self._timeout + wait
        try:
            async with asyncio.timeout(limit):
                # Its own clock is longer than ours, so that there is one that decides.
                response = await self._client.send(
                    method, target, data, headers, None, aiohttp.ClientTimeout(2 * limit)
                )
                try:
                    raw = await _bounded(response, what)
                finally:
                    response.release()
        except aiohttp.ClientConnectorError as error:
            raise BackendError(f"{what}: no connection: {error}", retryable=True) from error
        except TimeoutError as error:
            raise _lost(f"{what}: no answer within {limit:g} s", write=write) from error
        except (aiohttp.ClientError, OSError) as error:
            raise _lost(f"{what}: {type(error).__name__}: {error}", write=write) from error
        return _judged(what, response.status, response.headers, raw, write=write)


async def _bounded(response: aiohttp.ClientResponse, what: str) -> bytes:
    found = bytearray()
    async for chunk in response.content.iter_chunked(1 << 16):
        found += chunk
        if len(found) > BODY_LIMIT:
            response.close()
            raise BackendError(f"{what}: an answer of more than {BODY_LIMIT >> 20} MiB")
    return bytes(found)


def _judged(what: str, status: int, headers: Mapping[str, str], raw: bytes, *, write: bool) -> dict[str, Any]:
    value = _decoded(raw)
    if 200 <= status < 300:
        if value is None:
            raise _lost(
                f"{what}: an answer that is no JSON object: is this a Matrix homeserver?", write=write
            )
        return value
    value = value or {}
    errcode, said = str(value.get("errcode", ""))[:80], str(value.get("error", ""))[:300]
    if status == 429:
        wait = _retry_after(headers, value)
        raise Busy(f"{what}: the homeserver asks to wait {wait:g} s (rate limit)", wait)
    if status >= 500:
        raise _lost(f"{what}: the homeserver answers {status} {errcode} {said}".rstrip(), write=write)
    raise Refused(f"{what}: {errcode or status}: {said}", status=status, errcode=errcode, body=value)


def _decoded(raw: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, list):
        return {"list": value}
    return value if isinstance(value, dict) else None


def _retry_after(headers: Mapping[str, str], body: Mapping[str, Any]) -> float:
    """Seconds to wait: from the header, else from the older field of the body, else 5."""
    try:
        wait = float(headers.get("Retry-After", ""))
    except ValueError:
        old = body.get("retry_after_ms")
        # Bounded before it is divided: JSON's whole numbers may be too large for a float.
        wait = min(max(old, 0), 1000 * LONGEST_WAIT) / 1000 if isinstance(old, int | float) else 5.0
    return min(max(wait, 0.0), LONGEST_WAIT) if wait == wait else 5.0


def _lost(message: str, *, write: bool) -> BackendError:
    return Ambiguous(message) if write else BackendError(message, retryable=True)


def _tls(ca_file: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file or None)
    except (OSError, ssl.SSLError) as error:
        raise Misconfigured("ca_file", f"{ca_file}: {error}") from error
