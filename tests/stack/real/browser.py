"""A person on the internet: HTTPS requests from the client's machine, and what came of each."""

from __future__ import annotations

import ctypes
import http.client
import os
import re
import socket
import ssl
import threading
import time
import xmlrpc.client
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

from tests.stack.real.machine import Machine

CLONE_NEWNET = 0x40000000
TIMEOUT = 10.0


def network_of(machine: Machine) -> AbstractContextManager[None]:
    """This thread in a machine's network: sockets that are made here belong there for good."""
    return network_at(Path(f"/proc/{machine.init}/ns/net"))


@contextmanager
def network_at(path: Path) -> Iterator[None]:
    """The same, for a network by its file."""
    with Path("/proc/thread-self/ns/net").open("rb") as home:
        with path.open("rb") as there:
            _setns(there.fileno())
        try:
            yield
        finally:
            _setns(home.fileno())


def _setns(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request got."""

    status: int
    body: str
    location: str
    certificate: bytes
    """DER, of the server."""


@dataclass
class Browser:
    """Requests to one site. Trusts only the authority it was given, and knows the site by name."""

    machine: Machine
    host: str
    address: str
    authority: str
    """PEM."""
    port: int = 443
    cookies: dict[str, str] = field(default_factory=dict)

    def request(
        self, method: str, path: str, body: bytes = b"", kind: str = "", timeout: float = TIMEOUT
    ) -> Answer:
        """One request on a connection of its own. Raises OSError."""
        context = ssl.create_default_context(cadata=self.authority)
        with network_of(self.machine):
            raw = socket.create_connection((self.address, self.port), timeout=timeout)
        try:
            tls = context.wrap_socket(raw, server_hostname=self.host)
            certificate = tls.getpeercert(True) or b""
        except BaseException:
            raw.close()
            raise
        connection = http.client.HTTPSConnection(self.host, timeout=timeout, context=context)
        connection.sock = tls
        headers = {"Connection": "close", **({"Content-Type": kind} if kind else {})}
        if self.cookies:
            headers["Cookie"] = "; ".join(f"{k}={v}" for k, v in self.cookies.items())
        try:
            connection.request(method, path, body or None, headers)
            answer = connection.getresponse()
            text = answer.read().decode("utf-8", "replace")
            return Answer(answer.status, text, answer.getheader("Location") or "", certificate)
        except http.client.HTTPException as error:
            raise OSError(f"{type(error).__name__}: {error}") from error
        finally:
            connection.close()

    def get(self, path: str = "/", timeout: float = TIMEOUT) -> Answer:
        """GET."""
        return self.request("GET", path, timeout=timeout)

    def form(self, path: str, **values: str) -> Answer:
        """POST a form."""
        return self.request("POST", path, urlencode(values).encode(), "application/x-www-form-urlencoded", 60)


@dataclass
class Blog:
    """WordPress, as its author sees it."""

    browser: Browser
    user: str = "owner"
    password: str = field(default_factory=lambda: os.urandom(12).hex(), repr=False)

    def install(self) -> None:
        """WordPress's own installation, as the first visitor is led to it."""
        first = self.browser.get("/", timeout=30)
        assert first.status == 302 and "install.php" in first.location, first
        done = self.browser.form(
            "/wp-admin/install.php?step=2",
            weblog_title="Stack",
            user_name=self.user,
            admin_password=self.password,
            admin_password2=self.password,
            pw_weak="on",
            admin_email="owner@home.test",
            blog_public="0",
            language="",
        )
        assert done.status == 200 and "wp-login.php" in done.body, done.body[:2000]

    def write(self, title: str, text: str) -> int:
        """Publish a post; its number. Raises OSError, also if WordPress does not say that it has it."""
        content = {"post_title": title, "post_content": text, "post_status": "publish"}
        body = xmlrpc.client.dumps((1, self.user, self.password, content), "wp.newPost").encode()
        answer = self.browser.request("POST", "/xmlrpc.php", body, "text/xml", 30)
        if answer.status != 200:
            raise OSError(f"xmlrpc.php answered {answer.status}: {answer.body[:300]}")
        try:
            (number,), _ = xmlrpc.client.loads(answer.body)
        except Exception as error:
            raise OSError(f"no post: {error}") from error
        return int(str(number))

    def has(self, text: str) -> bool:
        """Whether the front page shows a text. Raises OSError if there is no front page."""
        answer = self.browser.get("/")
        if answer.status != 200:
            raise OSError(f"the front page answered {answer.status}")
        return text in answer.body

    def titles(self) -> list[str]:
        """Of the posts on the front page, newest first."""
        answer = self.browser.get("/")
        if answer.status != 200:
            raise OSError(f"the front page answered {answer.status}")
        return re.findall(r'<h2 class="entry-title[^>]*><a[^>]*>([^<]*)</a>', answer.body)


@dataclass(slots=True)
class Try:
    """One request of a stream."""

    sent: float
    done: float = 0.0
    status: int = 0
    error: str = ""
    certificate: bytes = b""

    @property
    def good(self) -> bool:
        """Whether the site answered as it should."""
        return self.status == 200


@dataclass
class Stream:
    """Asks for a page again and again, several at once, and keeps a journal."""

    browser: Browser
    path: str = "/"
    pause: float = 0.25
    threads: int = 2
    timeout: float = 30.0
    journal: list[Try] = field(default_factory=list)
    _end: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        """Begin."""
        for number in range(self.threads):
            thread = threading.Thread(target=self._run, name=f"stream-{number}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        """End after the requests under way."""
        self._end.set()
        for thread in self._threads:
            thread.join(self.timeout + 10)

    def _run(self) -> None:
        while not self._end.wait(self.pause):
            one = Try(sent=time.monotonic())
            self.journal.append(one)
            try:
                answer = self.browser.get(self.path, self.timeout)
                one.status, one.certificate = answer.status, answer.certificate
            except OSError as error:
                one.error = f"{type(error).__name__}: {error}"
            one.done = time.monotonic()

    def between(self, begin: float, end: float) -> list[Try]:
        """Requests that were sent in a span and have ended."""
        return [one for one in self.journal if begin <= one.sent <= end and one.done]

    def first_good(self, since: float) -> float | None:
        """Seconds from `since` to the first good answer to a request that was sent after it."""
        done = [one.done for one in self.journal if one.good and one.sent >= since]
        return min(done) - since if done else None
