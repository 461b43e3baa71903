"""JSON lines over a non-blocking socket, with bounds: between agent and guard, and between guard and keepers."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Mapping
from typing import Any

MAX_LINE = 1 << 20
MAX_QUEUED = 4 << 20

Message = dict[str, Any]


class BadMessageError(Exception):
    """The other side sent what no client of ours sends."""


class Lines:
    """One end of a connection. Never blocks and never holds more than the bounds above."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self.socket = end
        self.open = True
        self._in = bytearray()
        self._out = bytearray()

    @property
    def wants_to_write(self) -> bool:
        """Whether something waits to be sent."""
        return self.open and bool(self._out)

    def receive(self) -> Iterator[Message]:
        """Messages that have arrived. Raises BadMessageError; afterwards the connection is of no use."""
        try:
            data = self.socket.recv(1 << 16)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self.open = False
            return
        self._in += data
        while (end := self._in.find(b"\n")) >= 0:
            line = bytes(self._in[:end])
            del self._in[: end + 1]
            yield decode(line)
        if len(self._in) > MAX_LINE:
            raise BadMessageError(f"line longer than {MAX_LINE} bytes")

    def send(self, message: Mapping[str, Any]) -> None:
        """Queue a message and send what goes out at once. A reader that does not read is cut off."""
        self._out += json.dumps(message, separators=(",", ":")).encode() + b"\n"
        if len(self._out) > MAX_QUEUED:
            self.open = False
        self.flush()

    def flush(self) -> None:
        """Send what the socket takes now."""
        while self.open and self._out:
            try:
                sent = self.socket.send(self._out, socket.MSG_NOSIGNAL)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self.open = False
                return
            del self._out[:sent]

    def close(self) -> None:
        """Close the socket; safe to repeat."""
        self.open = False
        self.socket.close()


def decode(line: bytes) -> Message:
    """One message. Raises BadMessageError for anything but a JSON object."""
    if len(line) > MAX_LINE:
        raise BadMessageError(f"line longer than {MAX_LINE} bytes")
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadMessageError("not JSON") from error
    if not isinstance(message, dict):
        raise BadMessageError("not a JSON object")
    return message


class Fields:
    """Typed access to a message's fields. Every getter raises BadMessageError naming the field."""

    def __init__(self, message: Message) -> None:
        self._message = message

    def text(self, name: str, *, default: str | None = None, limit: int = 4096) -> str:
        """A string without NUL."""
        value = self._message.get(name, default)
        if not isinstance(value, str) or len(value) > limit or "\0" in value:
            raise BadMessageError(f"{name}: expected a string of at most {limit} characters")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise BadMessageError(f"{name}: not valid Unicode") from error
        return value

    def integer(self, name: str, *, low: int, high: int, default: int | None = None) -> int:
        """A whole number within bounds."""
        value = self._message.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise BadMessageError(f"{name}: expected an integer from {low} to {high}")
        return value

    def flag(self, name: str) -> bool:
        """A boolean, false if absent."""
        value = self._message.get(name, False)
        if not isinstance(value, bool):
            raise BadMessageError(f"{name}: expected true or false")
        return value

    def texts(self, name: str, *, limit: int = 4096) -> list[str]:
        """A list of strings."""
        value = self._message.get(name, [])
        if not isinstance(value, list) or len(value) > limit:
            raise BadMessageError(f"{name}: expected a list")
        return [Fields({name: item}).text(name, limit=1 << 17) for item in value]

    def mapping(self, name: str) -> dict[str, Any]:
        """An object, empty if absent."""
        value = self._message.get(name, {})
        if not isinstance(value, dict) or len(value) > 4096:
            raise BadMessageError(f"{name}: expected an object")
        return value

    def text_mapping(self, name: str) -> dict[str, str]:
        """An object whose values are strings; names hold neither NUL nor `=`."""
        found = {}
        for key, value in self.mapping(name).items():
            Fields({name: key}).text(name)
            if "=" in key or not key:
                raise BadMessageError(f"{name}: {key!r} cannot be a name")
            found[key] = Fields({key: value}).text(key, limit=1 << 17)
        return found
