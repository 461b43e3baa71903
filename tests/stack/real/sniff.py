"""Everything that a machine's network carries, kept by flow; and the search for what must never be readable there."""

from __future__ import annotations

import base64
import gzip
import os
import socket
import struct
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import zstandard

from fractal.demo.tap import searchable
from tests.stack.real.browser import network_of
from tests.stack.real.machine import Machine

ALL = 0x0003
IPV4, IPV6 = 0x0800, 0x86DD
TCP, UDP = 6, 17
ETHERNET = 1
"""ARPHRD_ETHER of linux/if_arp.h."""
WINDOW, OVERLAP = 1 << 20, 1 << 16
"""Bytes that are searched at once: a magic number stands everywhere in gigabytes of noise, and each is followed up."""
REPEATS = 60
"""A canary stands this often in a text, so that it is whole in some packet or page wherever those are cut."""


@dataclass
class Sniffer:
    """Listens on every interface of a machine, tunnels too."""

    machine: Machine
    flows: dict[tuple[str, bytes], bytearray] = field(default_factory=lambda: defaultdict(bytearray))
    """(interface, addresses and ports) -> payload in order of arrival."""
    packets: int = 0
    _end: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin."""
        with network_of(self.machine):
            listener = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        listener.settimeout(0.5)
        self._thread = threading.Thread(target=self._run, args=(listener,), name="sniffer", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._end.set()
        if self._thread is not None:
            self._thread.join(10)

    @property
    def size(self) -> int:
        """Bytes of payload."""
        return sum(map(len, self.flows.values()))

    def _run(self, listener: socket.socket) -> None:
        with listener:
            while not self._end.is_set():
                try:
                    frame, source = listener.recvfrom(1 << 17)
                except (TimeoutError, OSError):
                    continue
                self.packets += 1
                # A tunnel's interface has no Ethernet header (its hardware type is "none").
                packet = frame[14:] if source[3] == ETHERNET else frame
                if flow := _flow(packet, source[1]):
                    self.flows[source[0], flow[0]] += flow[1]


def _flow(packet: bytes, protocol: int) -> tuple[bytes, bytes] | None:
    """Addresses and ports of an IP packet, and its payload; None for anything else."""
    if protocol == IPV4 and len(packet) >= 20:
        start, kind, addresses = (packet[0] & 15) * 4, packet[9], packet[12:20]
        packet = packet[: struct.unpack_from("!H", packet, 2)[0] or len(packet)]
    elif protocol == IPV6 and len(packet) >= 40:
        start, kind, addresses = 40, packet[6], packet[8:40]
    else:
        return None
    if kind == TCP and len(packet) >= start + 20:
        data = start + (packet[start + 12] >> 4) * 4
    elif kind == UDP and len(packet) >= start + 8:
        data = start + 8
    else:
        return None
    return bytes([kind]) + addresses + packet[start : start + 4], packet[data:]


def canary() -> str:
    """A text that no compression shortens, and that is nowhere by chance."""
    return os.urandom(24).hex()


def disguises(text: str) -> list[bytes]:
    """The text as it stands in clear, in hex and in base64 at each of its three offsets."""
    plain = text.encode()
    found = [plain, plain.hex().encode(), plain.hex().upper().encode()]
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        # The first and last characters depend on what stands around.
        found += [encode(b"\0" * offset + plain).rstrip(b"=")[4:-4] for offset in range(3)]
    return sorted(set(found))


def readable(data: bytes, text: str) -> bool:
    """Whether the text can be read in the bytes, also after decompression or decoding."""
    forms = disguises(text)
    return any(
        form in plain
        for at in range(0, max(len(data), 1), WINDOW)
        for plain in searchable(data[at : at + WINDOW + OVERLAP])
        for form in forms
    )


def files_that_hold(folder: Path, text: str) -> tuple[int, list[Path]]:
    """How many files below a folder were searched, and those in which the text can be read."""
    count, found = 0, []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            count += 1
            if readable(path.read_bytes(), text):
                found.append(path)
    return count, found


def control(text: str) -> None:
    """The search finds what is there: in clear, compressed, encoded. Fails otherwise."""
    plain = b"head " + text.encode() * 2 + b" tail"
    samples = [plain, gzip.compress(plain), zstandard.ZstdCompressor().compress(plain)]
    samples += [base64.b64encode(b"x" * offset + plain) for offset in range(3)] + [plain.hex().encode()]
    for number, sample in enumerate(samples):
        assert readable(b"before" + sample + b"after", text), f"the search misses sample {number}"
    assert not readable(os.urandom(1000) + gzip.compress(b"nothing"), text)
