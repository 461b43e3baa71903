"""A wire-tap between the client and the gateway, and the search for what must never be readable outside the devices."""

from __future__ import annotations

import bz2
import contextlib
import lzma
import selectors
import socket
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

LARGEST = 64 << 20
"""Bytes of traffic that are kept; more than the demo makes."""


class Tap:
    """Passes TCP connections on to a port and keeps every byte of both directions."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.seen: list[bytes] = []
        self.size = 0
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, name="tap", daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._pass, args=(client,), daemon=True).start()

    def _pass(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(("127.0.0.1", self._target), timeout=5)
        except OSError:
            client.close()
            return
        kept: dict[socket.socket, bytearray] = {client: bytearray(), server: bytearray()}
        with client, server, selectors.DefaultSelector() as selector:
            selector.register(client, selectors.EVENT_READ, server)
            selector.register(server, selectors.EVENT_READ, client)
            try:
                while ready := selector.select(timeout=60):
                    for key, _ in ready:
                        source, sink = key.fileobj, key.data
                        assert isinstance(source, socket.socket)
                        data = source.recv(65536)
                        if not data:
                            return
                        kept[source] += data
                        sink.sendall(data)
            except OSError:
                return
            finally:
                with self._lock:
                    for stream in kept.values():
                        if self.size + len(stream) <= LARGEST:
                            self.seen.append(bytes(stream))
                            self.size += len(stream)


def searchable(data: bytes) -> Iterator[bytes]:
    """The bytes as they are, and whatever any known compression makes of them from any place where it could begin."""
    yield data
    for magic, open_ in (
        (b"\x28\xb5\x2f\xfd", _zstd),
        (b"\x1f\x8b\x08", lambda d: zlib.decompressobj(31).decompress(d, LARGEST)),
        (b"\x78\x01", lambda d: zlib.decompressobj().decompress(d, LARGEST)),
        (b"\x78\x9c", lambda d: zlib.decompressobj().decompress(d, LARGEST)),
        (b"\x78\xda", lambda d: zlib.decompressobj().decompress(d, LARGEST)),
        (b"\xfd7zXZ\x00", lambda d: lzma.LZMADecompressor().decompress(d, LARGEST)),
        (b"BZh", lambda d: bz2.BZ2Decompressor().decompress(d, LARGEST)),
    ):
        at = data.find(magic)
        while at >= 0:
            plain = b""
            with contextlib.suppress(OSError, ValueError, EOFError, zlib.error, lzma.LZMAError):
                plain = open_(data[at:])
            yield plain
            at = data.find(magic, at + 1)


def _zstd(data: bytes) -> bytes:
    import zstandard

    try:
        return zstandard.ZstdDecompressor().decompressobj().decompress(data)
    except zstandard.ZstdError as error:
        raise ValueError("not zstd") from error


def holds(data: bytes, canary: bytes) -> bool:
    """Whether the canary can be read in the bytes, also after decompression."""
    return any(canary in plain for plain in searchable(data))


def files_that_hold(folder: Path, canary: bytes) -> tuple[int, list[Path]]:
    """How many files below a folder were searched, and those in which the canary can be read."""
    count, found = 0, []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            count += 1
            if holds(path.read_bytes(), canary):
                found.append(path)
    return count, found
