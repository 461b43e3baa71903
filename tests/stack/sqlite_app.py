"""An app of two SQLite files, one for each kind of journal, both written to from a POST on. Usage: PORT FOLDER.

It runs alone, without this repository: GET / says what was acknowledged, GET /check what SQLite says of the files.
"""

import http.server
import json
import pathlib
import random
import sqlite3
import sys
import threading
from typing import Any

PORT, FOLDER = int(sys.argv[1]), sys.argv[2]
JOURNALS = ("wal", "delete")
FILL = 10_000
acknowledged = dict.fromkeys(JOURNALS, 0)


def connect(journal: str) -> sqlite3.Connection:
    """A connection whose transactions are begun and committed by hand."""
    made = sqlite3.connect(f"{FOLDER}/{journal}.db", timeout=30, isolation_level=None)
    made.execute(f"PRAGMA journal_mode={journal}")
    # No machine loses power here: what a snapshot shows is what was written, and this way far more of it is.
    made.execute("PRAGMA synchronous=OFF")
    made.execute("CREATE TABLE IF NOT EXISTS line (n INTEGER PRIMARY KEY, word TEXT, body TEXT)")
    made.execute("CREATE INDEX IF NOT EXISTS words ON line (word)")
    return made


def write(journal: str) -> None:
    """Commit numbered lines for ever, in a file that takes a while to copy."""
    database = connect(journal)
    n = FILL
    database.execute("BEGIN IMMEDIATE")
    for number in range(1, n + 1):
        database.execute("INSERT INTO line VALUES (?, ?, ?)", (number, f"{random.random()}", "x" * 2000))
    database.execute("COMMIT")
    while True:
        n += 1
        word = random.randbytes(40).hex()
        database.execute("BEGIN IMMEDIATE")
        database.execute("INSERT INTO line VALUES (?, ?, ?)", (n, word, word * 20))
        for _ in range(4):
            changed = (word, word * random.randrange(30), random.randrange(1, n + 1))
            database.execute("UPDATE line SET word = ?, body = ? WHERE n = ?", changed)
        database.execute("COMMIT")
        acknowledged[journal] = n


def check(journal: str) -> list[Any]:
    """What SQLite says, how many lines there are, and the last one's number."""
    try:
        database = connect(journal)
        (said,) = database.execute("PRAGMA integrity_check").fetchone()
        return [said, *database.execute("SELECT COUNT(*), COALESCE(MAX(n), 0) FROM line").fetchone()]
    except sqlite3.Error as error:
        return [str(error), 0, 0]


class Answer(http.server.BaseHTTPRequestHandler):
    """Answers in JSON."""

    def do_GET(self) -> None:
        """What was acknowledged, or what is in the files."""
        found: object = acknowledged if self.path == "/" else {j: check(j) for j in JOURNALS}
        body = json.dumps(found).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        """Begin to write."""
        for journal in JOURNALS:
            threading.Thread(target=write, args=(journal,), daemon=True).start()
        self.do_GET()

    def log_message(self, *_: object) -> None:
        """Nothing."""


pathlib.Path(FOLDER).mkdir(exist_ok=True)
http.server.ThreadingHTTPServer.allow_reuse_address = True
http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Answer).serve_forever()
