"""Which server name a TLS client asks for, read off its ClientHello without taking part in the handshake (RFC 8446, 6066)."""

from __future__ import annotations

from collections.abc import Iterator

from fractal.api.errors import InvalidInput
from fractal.api.names import normal_host

MAX_HELLO = 16 * 1024
"""Bytes on the wire in which the ClientHello must be complete. Post-quantum ones need about 2 KiB."""

_HANDSHAKE = 22
_CLIENT_HELLO = 1
_SERVER_NAME = 0
_ALPN = 16
_HOST_NAME = 0


class Cursor:
    """Reads big-endian fields off untrusted bytes; every read past the end raises InvalidInput."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        """Bytes not read yet."""
        return len(self._data) - self._at

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        if count > self.left:
            raise InvalidInput("a field reaches past the end of its message")
        self._at += count
        return self._data[self._at - count : self._at]

    def number(self, size: int) -> int:
        """The next `size` bytes as a number."""
        return int.from_bytes(self.take(size), "big")

    def block(self, size: int) -> bytes:
        """Bytes preceded by their length in `size` bytes."""
        return self.take(self.number(size))


class HelloReader:
    """Takes the bytes of a connection as they come, in whatever pieces, until the ClientHello is complete.

    The hello may be spread over several TLS records, and those over any number of segments.
    """

    def __init__(self) -> None:
        self.received = bytearray()
        """Everything fed so far, to be passed on unchanged."""
        self._message = bytearray()
        self._at = 0

    def feed(self, data: bytes) -> bytes | None:
        """The ClientHello's body once it is complete, else None. Raises InvalidInput as soon as it cannot become one."""
        self.received += data
        while (body := self._complete()) is None:
            if not self._next_record():
                if len(self.received) > MAX_HELLO:
                    raise InvalidInput(f"no ClientHello within {MAX_HELLO} bytes")
                return None
        return body

    def _next_record(self) -> bool:
        """Move the next record's fragment over to the message; False if it has not arrived whole."""
        header = bytes(self.received[self._at : self._at + 5])
        if header[:1] not in (b"", bytes([_HANDSHAKE])) or header[1:2] not in (b"", b"\x03"):
            raise InvalidInput("not a TLS handshake")
        if len(header) < 5:
            return False
        length = int.from_bytes(header[3:5], "big")
        if not 0 < length <= MAX_HELLO:
            raise InvalidInput(f"TLS record of {length} bytes")
        if len(self.received) < self._at + 5 + length:
            return False
        self._message += self.received[self._at + 5 : self._at + 5 + length]
        self._at += 5 + length
        return True

    def _complete(self) -> bytes | None:
        if self._message and self._message[0] != _CLIENT_HELLO:
            raise InvalidInput("a TLS handshake that does not begin with a ClientHello")
        if len(self._message) < 4:
            return None
        length = int.from_bytes(self._message[1:4], "big")
        if length > MAX_HELLO:
            raise InvalidInput(f"ClientHello of {length} bytes")
        return bytes(self._message[4 : 4 + length]) if len(self._message) >= 4 + length else None


def server_name(body: bytes) -> str | None:
    """The normalised server name of a ClientHello's body; None if it names none. Raises InvalidInput."""
    found: str | None = None
    for kind, content in _extensions(body):
        if kind == _SERVER_NAME:
            if found is not None:
                raise InvalidInput("a ClientHello with two server name extensions")
            found = _host_name(content)
    return found


def protocols(body: bytes) -> tuple[bytes, ...]:
    """The application protocols that a ClientHello's body offers (ALPN, RFC 7301), in order. Raises InvalidInput."""
    found: list[bytes] = []
    for kind, content in _extensions(body):
        if kind == _ALPN:
            names = Cursor(Cursor(content).block(2))
            while names.left:
                found.append(names.block(1))
    return tuple(found)


def _extensions(body: bytes) -> Iterator[tuple[int, bytes]]:
    hello = Cursor(body)
    hello.take(2 + 32)  # legacy version, random
    hello.block(1)  # session id
    hello.block(2)  # cipher suites
    hello.block(1)  # compression methods
    if not hello.left:
        return
    extensions = Cursor(hello.block(2))
    while extensions.left:
        yield extensions.number(2), extensions.block(2)


def _host_name(extension: bytes) -> str:
    names = Cursor(Cursor(extension).block(2))
    kind = names.number(1)
    raw = names.block(2)
    if kind != _HOST_NAME or names.left:
        raise InvalidInput("a server name extension that does not hold exactly one host name")
    try:
        return normal_host(raw.decode("ascii"))
    except UnicodeDecodeError as error:
        raise InvalidInput("a server name that is not ASCII") from error
