"""Free ports on loopback."""

from __future__ import annotations

import errno
import socket
from collections.abc import Collection

from fractal.api.context import Entropy
from fractal.api.errors import BackendError

HOST = "127.0.0.1"


def is_free(port: int, protocol: str) -> bool:
    """Whether a service could listen there now."""
    kind = socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM
    with socket.socket(socket.AF_INET, kind) as probe:
        if protocol == "tcp":  # as servers do, so that connections in TIME_WAIT are no obstacle
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
            if protocol == "tcp":
                probe.listen(1)
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            raise BackendError(f"process runtime: port {port}: {error.strerror}") from error
    return True


def choose(entropy: Entropy, first: int, last: int, protocol: str, taken: Collection[int]) -> int:
    """A free port from `first` to `last`, not one of `taken`. At random, so that two agents rarely want the same one."""
    count = last - first + 1
    start = int(entropy.uniform(0, count))
    for offset in range(count):
        port = first + (start + offset) % count
        if port not in taken and is_free(port, protocol):
            return port
    raise BackendError(
        f"process runtime: no free port from {first} to {last}; widen first_port and last_port"
    )
