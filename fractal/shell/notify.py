"""Telling the supervisor how we are: the sd_notify(3) protocol, without any library."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping

_log = logging.getLogger(__name__)


class Notifier:
    """Sends to the datagram socket named by NOTIFY_SOCKET; does nothing where there is none.

    A message that cannot be delivered is logged and dropped: the supervisor's trouble must not become the agent's.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        values = os.environ if environment is None else environment
        self._address = values.get("NOTIFY_SOCKET", "")
        self._interval = _watchdog_seconds(values)

    @property
    def watchdog_interval(self) -> float | None:
        """Seconds between `watchdog()` calls that the supervisor wants (half of its time-out); None: it wants none."""
        return self._interval

    def ready(self, text: str = "") -> None:
        """Start-up is over."""
        self._send("READY=1", text)

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send("", text)

    def watchdog(self) -> None:
        """Still alive."""
        self._send("WATCHDOG=1", "")

    def stopping(self, text: str = "") -> None:
        """Shutdown has begun."""
        self._send("STOPPING=1", text)

    def _send(self, state: str, text: str) -> None:
        if not self._address:
            return
        status = f"STATUS={' '.join(text.split())}" if text else ""
        message = "\n".join(line for line in (state, status) if line).encode()
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
                out.setblocking(False)
                out.sendto(message, address)
        except OSError as error:
            _log.warning("supervisor at %s was not told %r: %s", self._address, message, error)


def _watchdog_seconds(values: Mapping[str, str]) -> float | None:
    wanted, pid = values.get("WATCHDOG_USEC", ""), values.get("WATCHDOG_PID", "")
    if not wanted.isdecimal() or int(wanted) == 0 or pid not in ("", str(os.getpid())):
        return None
    return int(wanted) / 2_000_000
