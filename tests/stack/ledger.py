"""The test's app: a ledger that numbers its lines, so that every loss, tear or second writer shows in the file itself.

usage: ledger.py PORT FOLDER [MODE...]    modes: ill (never healthy), forks, stubborn (ignores SIGTERM), fast, big
"""

import http.server
import itertools
import os
import pathlib
import signal
import sys
import threading
import time

port, folder, modes = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
path = pathlib.Path(folder, "ledger")
lock = threading.Lock()


def count() -> int:
    """Whole lines so far; half of one, from a crash, is cut off."""
    with path.open("ab+") as file:
        file.seek(0)
        text = file.read()
        file.truncate(text.rfind(b"\n") + 1)
        return text.count(b"\n")


def add() -> int:
    """One more line, durable; its number."""
    with lock:
        number = next(numbers)
        with path.open("ab") as file:
            file.write(b"%d\n" % number)
            file.flush()
            os.fsync(file.fileno())
        return number


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/health":
            self.answer(503 if "ill" in modes else 200, b"here")
        else:
            with path.open("rb") as file:
                self.answer(200, file.read())

    def do_POST(self) -> None:
        self.answer(201, b"%d" % add())

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Nothing: a line for each request would fill the log."""


def daemonize() -> None:
    """A daemon of the old school: forks twice, leaves the session, lets go of everything, and lives on."""
    if os.fork():
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    os.closerange(3, 256)
    while True:
        time.sleep(0.05)


path.parent.mkdir(parents=True, exist_ok=True)
began = count()
numbers = itertools.count(began)
if "big" in modes:
    path.with_name("big").write_bytes(os.urandom(3 << 20))
if "forks" in modes:
    daemonize()
    daemonize()
if "stubborn" in modes:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
if "fast" in modes:

    def write() -> None:
        while True:
            add()
            time.sleep(0.01)

    threading.Thread(target=write, daemon=True).start()
print("ledger begins at", began, flush=True)
server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
server.serve_forever()
