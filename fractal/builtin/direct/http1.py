"""HTTP/1.1 message heads as the device's front reads and rewrites them (RFC 9110, 9112). Pure.

Strict where two readers could differ about where a message ends: such a request is refused, never repaired.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from fractal.api.errors import InvalidInput
from fractal.api.names import normal_host

MAX_HEAD = 64 * 1024

Fields = tuple[tuple[bytes, bytes], ...]

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_TARGET = re.compile(rb"[\x21-\x7e\x80-\xff]+")
_VERSION = re.compile(rb"HTTP/1\.[01]")
_STATUS = re.compile(rb"(HTTP/1\.[01]) ([1-5][0-9][0-9])( [\t\x20-\x7e\x80-\xff]*)?")
_PER_HOP = frozenset({b"connection", b"keep-alive", b"proxy-connection", b"te", b"upgrade"})
_NEVER_PER_HOP = frozenset({b"host", b"content-length", b"transfer-encoding"})


class HttpError(InvalidInput):
    """A message that cannot be passed on; `status` is what the sender of a request is told."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class End(Enum):
    """How the end of a body is found, when its length is not known beforehand."""

    CHUNKED = "chunked"
    CLOSE = "close"


Framing = int | End
"""Bytes of the body, or how its end is found."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request's head."""

    method: bytes
    target: bytes
    version: bytes
    fields: Fields


@dataclass(frozen=True, slots=True)
class Response:
    """A response's head."""

    version: bytes
    status: int
    reason: bytes
    fields: Fields


def parse_request(head: bytes) -> Request:
    """The request whose head, including the empty line, is `head`. Raises HttpError."""
    line, fields = _parse(head, 400)
    parts = line.split(b" ")
    if len(parts) != 3 or not _TOKEN.fullmatch(parts[0]) or not _TARGET.fullmatch(parts[1]):
        raise HttpError(400, "malformed request line")
    if not _VERSION.fullmatch(parts[2]):
        raise HttpError(505, "only HTTP/1.0 and HTTP/1.1 are spoken here")
    if parts[0] == b"CONNECT":
        raise HttpError(405, "this is no forward proxy")
    return Request(parts[0], parts[1], parts[2], fields)


def parse_response(head: bytes) -> Response:
    """The response whose head is `head`. Raises HttpError with status 502."""
    line, fields = _parse(head, 502)
    match = _STATUS.fullmatch(line)
    if match is None:
        raise HttpError(502, "the app answered with a malformed status line")
    return Response(match[1], int(match[2]), (match[3] or b"").strip(), fields)


def host_of(request: Request) -> str:
    """The normalised host name that the request is for, without a port. Raises HttpError."""
    hosts = values(request.fields, b"host")
    if len(hosts) != 1:
        raise HttpError(400, "a request needs exactly one Host")
    authorities = hosts
    if not request.target.startswith(b"/") and request.target != b"*":
        scheme, separator, rest = request.target.partition(b"://")
        if not separator or scheme.lower() not in (b"http", b"https"):
            raise HttpError(400, "malformed request target")
        authorities = [*hosts, re.split(rb"[/?#]", rest)[0]]
    names = {_host_name(authority) for authority in authorities}
    if len(names) != 1:
        raise HttpError(400, "request target and Host name different hosts")
    return names.pop()


def request_framing(request: Request) -> Framing:
    """How long the request's body is. Raises HttpError for a request that two readers could understand differently."""
    framing = _framing(request.fields, 400)
    if framing is End.CHUNKED and request.version == b"HTTP/1.0":
        raise HttpError(400, "Transfer-Encoding in an HTTP/1.0 request")
    return 0 if framing is None else framing


def response_framing(response: Response, method: bytes) -> Framing:
    """How long the body of the response to a `method` request is. Raises HttpError with status 502."""
    if method == b"HEAD" or response.status < 200 or response.status in (204, 304):
        return 0
    framing = _framing(response.fields, 502)
    return End.CLOSE if framing is None else framing


def wants_websocket(request: Request) -> bool:
    """Whether the request asks to go on as a WebSocket (RFC 6455); other upgrades are not passed on."""
    return (
        request.method == b"GET"
        and request.version == b"HTTP/1.1"
        and b"upgrade" in tokens(request.fields, b"connection")
        and tokens(request.fields, b"upgrade") == [b"websocket"]
        and request_framing(request) == 0
    )


def wants_close(request: Request) -> bool:
    """Whether the client will send no further request."""
    return request.version == b"HTTP/1.0" or b"close" in tokens(request.fields, b"connection")


def forwarded_request(request: Request, client: str) -> bytes:
    """The head to send to the app: the client's own claims about itself replaced by what we know."""
    host = values(request.fields, b"host")[0]
    kept = [field for field in _end_to_end(request.fields) if not _tells_origin(field[0])]
    kept += [
        (b"X-Forwarded-For", client.encode("ascii")),
        (b"X-Forwarded-Proto", b"https"),
        (b"X-Forwarded-Host", host),
    ]
    if wants_websocket(request):
        kept += [(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")]
    else:
        kept.append((b"Connection", b"close"))
    return _render(b" ".join((request.method, request.target, request.version)), kept)


def forwarded_response(response: Response, *, close: bool) -> bytes:
    """The head to send to the client. `Alt-Svc` is left out: what it offers does not come through a gateway."""
    kept = [field for field in _end_to_end(response.fields) if field[0].lower() != b"alt-svc"]
    if response.status == 101:
        kept += [(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")]
    elif close and response.status >= 200:
        kept.append((b"Connection", b"close"))
    return _render(b"HTTP/1.1 %d %s" % (response.status, response.reason), kept)


def refusal(status: int, text: str) -> bytes:
    """A whole response of our own, after which the connection is closed."""
    body = f"{status} {text}\n".encode()
    fields = [
        (b"Content-Type", b"text/plain; charset=utf-8"),
        (b"Content-Length", b"%d" % len(body)),
        (b"Connection", b"close"),
    ]
    return _render(b"HTTP/1.1 %d %s" % (status, REASONS.get(status, b"Error")), fields) + body


REASONS = {
    400: b"Bad Request",
    405: b"Method Not Allowed",
    421: b"Misdirected Request",
    431: b"Request Header Fields Too Large",
    502: b"Bad Gateway",
    503: b"Service Unavailable",
    505: b"HTTP Version Not Supported",
}


def redirect(location: str) -> bytes:
    """A permanent redirect that keeps the method (RFC 9110, 15.4.9)."""
    fields = [(b"Location", location.encode("ascii")), (b"Content-Length", b"0"), (b"Connection", b"close")]
    return _render(b"HTTP/1.1 308 Permanent Redirect", fields)


def values(fields: Fields, name: bytes) -> list[bytes]:
    """The values of every field called `name` (lower case)."""
    return [value for key, value in fields if key.lower() == name]


def tokens(fields: Fields, name: bytes) -> list[bytes]:
    """The comma-separated members of every field called `name`, in lower case."""
    parts = (part.strip().lower() for value in values(fields, name) for part in value.split(b","))
    return [part for part in parts if part]


def chunk_size(line: bytes) -> int:
    """The size that a chunk's first line, without CRLF, announces. Raises HttpError."""
    size = line.partition(b";")[0].rstrip(b"\t ")
    if not re.fullmatch(rb"[0-9A-Fa-f]{1,15}", size) or not _VALUE.fullmatch(line):
        raise HttpError(400, "malformed chunk")
    return int(size, 16)


def _parse(head: bytes, status: int) -> tuple[bytes, Fields]:
    if not head.endswith(b"\r\n\r\n"):
        raise HttpError(status, "incomplete message head")
    first, *lines = head[:-4].split(b"\r\n")
    fields = []
    for line in lines:
        name, colon, value = line.partition(b":")
        value = value.strip(b"\t ")
        if not colon or not _TOKEN.fullmatch(name) or not _VALUE.fullmatch(value):
            raise HttpError(status, "malformed header field")
        fields.append((name, value))
    return first, tuple(fields)


def _framing(fields: Fields, status: int) -> Framing | None:
    lengths = values(fields, b"content-length")
    codings = values(fields, b"transfer-encoding")
    if codings:
        if lengths or len(codings) > 1 or codings[0].lower() != b"chunked":
            raise HttpError(status, "a body whose end two readers could find at different places")
        return End.CHUNKED
    if not lengths:
        return None
    if len(set(lengths)) > 1 or not re.fullmatch(rb"[0-9]{1,18}", lengths[0]):
        raise HttpError(status, "malformed Content-Length")
    return int(lengths[0])


def _end_to_end(fields: Fields) -> list[tuple[bytes, bytes]]:
    dropped = (_PER_HOP | set(tokens(fields, b"connection"))) - _NEVER_PER_HOP
    return [field for field in fields if field[0].lower() not in dropped]


def _tells_origin(name: bytes) -> bool:
    # CGI and WSGI read `X_Forwarded_For` and `X-Forwarded-For` as the same variable.
    known = name.lower().replace(b"_", b"-")
    return known in (b"forwarded", b"x-real-ip", b"true-client-ip") or known.startswith(b"x-forwarded-")


def _host_name(authority: bytes) -> str:
    match = re.fullmatch(rb"([^:@\[\]]+)(:[0-9]{0,5})?", authority)
    if match is None:
        raise HttpError(421, "the Host is no name that is served here")
    try:
        return normal_host(match[1].decode("ascii"))
    except (InvalidInput, UnicodeDecodeError) as error:
        raise HttpError(421, "the Host is no name that is served here") from error


def _render(line: bytes, fields: list[tuple[bytes, bytes]]) -> bytes:
    return b"".join([line, b"\r\n", *(name + b": " + value + b"\r\n" for name, value in fields), b"\r\n"])
