"""The test's app: a ledger that numbers its lines, so that every loss, tear or second writer shows in the file itself.

usage: ledger.py PORT FOLDER [MODE...]    modes: ill (never healthy), forks, stubborn (ignores SIGTERM), fast, big
"""

import http.server
import os
import signal
import sys
import threading
import time

port, folder, modes = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
path = os.path.join(folder, "ledger")
lock = threading.Lock()
lines = 0


def load():
    global lines
    with open(path, "ab+") as file:
        file.seek(0)
        text = file.read()
        whole = text.rfind(b"\n") + 1
        file.truncate(whole)
        lines = text[:whole].count(b"\n")


def add():
    global lines
    with lock:
        with open(path, "ab") as file:
            file.write(b"%d\n" % lines)
            file.flush()
            os.fsync(file.fileno())
        lines += 1
        return lines - 1


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/health":
            self.answer(503 if "ill" in modes else 200, b"here")
        else:
            with open(path, "rb") as file:
                self.answer(200, file.read())

    def do_POST(self):
        self.answer(201, b"%d" % add())

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


def daemonize():
    """A daemon of the old school: forks twice, leaves the session, lets go of everything, and lives on."""
    if os.fork():
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    for descriptor in range(3, 256):
        try:
            os.close(descriptor)
        except OSError:
            pass
    while True:
        time.sleep(0.05)


os.makedirs(folder, exist_ok=True)
load()
if "big" in modes:
    with open(os.path.join(folder, "big"), "wb") as file:
        file.write(os.urandom(3 << 20))
if "forks" in modes:
    daemonize()
    daemonize()
if "stubborn" in modes:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
if "fast" in modes:

    def write():
        while True:
            add()
            time.sleep(0.01)

    threading.Thread(target=write, daemon=True).start()
print("ledger begins at", lines, flush=True)
server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
server.serve_forever()
