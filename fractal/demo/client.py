"""A person with a calendar: puts entries through the gateway and keeps a journal of what was acknowledged when."""

from __future__ import annotations

import base64
import http.client
import itertools
import os
import socket
import ssl
import threading
import time
from dataclasses import dataclass, field

LOGIN = "me"
"""The catalog's own default."""
PAUSE = 0.25
TIMEOUT = 4.0


@dataclass(slots=True)
class Attempt:
    """One calendar entry that the client tried to put."""

    uid: str
    sent: float
    done: float = 0.0
    acknowledged: bool = False
    error: str = ""


def connect(port: int, name: str, chain: str, timeout: float = TIMEOUT) -> http.client.HTTPSConnection:
    """A TLS connection through `port` to `name`, trusting only the app's own certificate."""
    context = ssl.create_default_context(cadata=chain)
    connection = http.client.HTTPSConnection(name, port, timeout=timeout, context=context)
    raw = socket.create_connection(("127.0.0.1", port), timeout=timeout)
    try:
        connection.sock = context.wrap_socket(raw, server_hostname=name)
    except BaseException:
        raw.close()
        raise
    return connection


@dataclass(slots=True)
class Calendar:
    """A client of one route."""

    port: int
    name: str
    chain: str
    password: str = field(default="", repr=False)
    path: str = f"/{LOGIN}/calendar/"

    def request(self, method: str, path: str, body: str = "", timeout: float = TIMEOUT) -> tuple[int, str]:
        """One request on a connection of its own; status and body. Raises OSError or HTTPException."""
        connection = connect(self.port, self.name, self.chain, timeout)
        try:
            headers = {"Connection": "close"}
            if self.password:
                basic = base64.b64encode(f"{LOGIN}:{self.password}".encode()).decode()
                headers["Authorization"] = f"Basic {basic}"
            if body:
                headers["Content-Type"] = "text/calendar; charset=utf-8"
            connection.request(method, path, body.encode() or None, headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode("utf-8", "replace")
        finally:
            connection.close()

    def make(self) -> None:
        """Make the calendar. Raises OSError if it cannot be made."""
        status, text = self.request("MKCALENDAR", self.path, timeout=15)
        if status not in (201, 405, 409):
            raise OSError(f"MKCALENDAR answered {status}: {text[:200]}")

    def put(self, uid: str, summary: str) -> bool:
        """Put an entry; whether the server acknowledged it."""
        status, _ = self.request("PUT", f"{self.path}{uid}.ics", event(uid, summary))
        return status in (201, 204)

    def entries(self) -> set[str]:
        """Uids of all entries that the server has now."""
        status, text = self.request("GET", self.path, timeout=15)
        if status != 200:
            raise OSError(f"GET answered {status}")
        return {line[4:].strip() for line in text.splitlines() if line.startswith("UID:")}


def event(uid: str, summary: str) -> str:
    """A calendar entry."""
    return (
        "BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:-//demo//EN\r\nBEGIN:VEVENT\r\n"
        f"UID:{uid}\r\nDTSTAMP:20260101T120000Z\r\nDTSTART:20260101T120000Z\r\nSUMMARY:{summary}\r\n"
        "END:VEVENT\r\nEND:VCALENDAR\r\n"
    )


@dataclass(slots=True)
class Writer:
    """Puts an entry every quarter of a second, for as long as it is told, and notes each outcome."""

    calendar: Calendar
    canary: str
    journal: list[Attempt] = field(default_factory=list)
    _end: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin."""
        self._end.clear()
        self._thread = threading.Thread(target=self._run, name="client", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End after the request under way."""
        self._end.set()
        if self._thread is not None:
            self._thread.join(TIMEOUT * 3)

    def _run(self) -> None:
        while not self._end.wait(PAUSE):
            attempt = Attempt(uid=f"{len(self.journal):05d}-{os.urandom(4).hex()}", sent=time.monotonic())
            self.journal.append(attempt)
            try:
                attempt.acknowledged = self.calendar.put(attempt.uid, f"{self.canary} {attempt.uid}")
            except (OSError, http.client.HTTPException) as error:
                attempt.error = type(error).__name__
            attempt.done = time.monotonic()

    def acknowledged(self) -> list[Attempt]:
        """Entries that the server said it has, oldest first."""
        return [a for a in self.journal if a.acknowledged]

    def outage(self, since: float) -> float | None:
        """Seconds from `since` to the first acknowledgement of an entry that was sent after it."""
        for attempt in self.journal:
            if attempt.acknowledged and attempt.sent >= since:
                return attempt.done - since
        return None

    def longest_gap(self, since: float, until: float) -> float:
        """Longest time between two acknowledgements in a span."""
        times = [since, *(a.done for a in self.journal if a.acknowledged and since <= a.done <= until), until]
        return max(b - a for a, b in itertools.pairwise(times))
