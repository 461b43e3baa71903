"""PostgreSQL, MariaDB and SQLite in one app, written to without a pause, and what each of them says of a moment of it."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field

from tests.stack.bed import until
from tests.stack.real.device import GROUP, Device, Failed
from tests.stack.real.images import Recipe
from tests.stack.real.world import World

KINDS = ("postgres", "mariadb", "sqlite")
UP = 120.0
"""Seconds in which three databases have to be up on a machine that does much else."""
POSTGRES = """#!/bin/sh
set -e
data=/data/pg
as="setpriv --reuid=postgres --regid=postgres --clear-groups"
bin=$(echo /usr/lib/postgresql/*/bin)
mkdir -p /run/postgresql
chown postgres /run/postgresql
[ -d $data ] || install -d -o postgres -g postgres -m 700 $data
[ -s $data/PG_VERSION ] || $as $bin/initdb -D $data --auth=trust --data-checksums >/dev/null
exec $as $bin/postgres -D $data -c jit=off -c listen_addresses= -c shared_buffers=16MB -c max_wal_size=64MB \\
  -c checkpoint_timeout=30s -c unix_socket_directories=/run/postgresql
"""
MARIADB = """#!/bin/sh
set -e
data=/data/maria
mkdir -p /run/mysqld
chown mysql:mysql /run/mysqld
[ -d $data ] || install -d -o mysql -g mysql $data
[ -d $data/mysql ] || mariadb-install-db --user=mysql --datadir=$data --skip-test-db >/dev/null
exec mariadbd --user=mysql --datadir=$data --skip-networking --innodb-buffer-pool-size=16M --innodb-log-file-size=8M \\
  --key-buffer-size=1M --performance-schema=off
"""
COMMON = '''"""What the writer and the check share."""
import sqlite3, sys


def connect(kind):
    """A connection whose transactions are begun and committed by hand, and its mark for a value."""
    if kind == "postgres":
        import psycopg2
        return psycopg2.connect(host="/run/postgresql", user="postgres", dbname="postgres"), "%s"
    if kind == "mariadb":
        import pymysql
        made = pymysql.connect(unix_socket="/run/mysqld/mysqld.sock", user="root")
        with made.cursor() as cursor:
            cursor.execute("CREATE DATABASE IF NOT EXISTS app")
            cursor.execute("USE app")
        return made, "%s"
    made = sqlite3.connect("/data/app.db", timeout=30)
    made.execute("PRAGMA journal_mode=WAL")
    made.execute("PRAGMA synchronous=FULL")
    return made, "?"
'''
WRITER = '''#!/usr/bin/python3
"""Commits numbered lines for ever. The number of each is noted outside the volume once the database has acknowledged it."""
import os, random, sys
from common import connect

database, mark = connect(sys.argv[1])
cursor = database.cursor()
cursor.execute("CREATE TABLE IF NOT EXISTS line (n INTEGER PRIMARY KEY, word VARCHAR(80), body TEXT)")
cursor.execute("CREATE TABLE IF NOT EXISTS total (one INTEGER PRIMARY KEY, n INTEGER)")
database.commit()
try:
    cursor.execute("CREATE INDEX words ON line (word)")
    cursor.execute("INSERT INTO total VALUES (1, 0)")
    database.commit()
except Exception:
    database.rollback()
cursor.execute("SELECT n FROM total")
n = cursor.fetchone()[0]
notes = os.open("/run/acknowledged", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
while True:
    n += 1
    body = random.randbytes(random.randrange(2000)).hex()
    cursor.execute(f"INSERT INTO line VALUES ({mark}, {mark}, {mark})", (n, body[:80], body))
    changed = (body[:40], body[:1000], random.randrange(1, n + 1))
    cursor.execute(f"UPDATE line SET word = {mark}, body = {mark} WHERE n = {mark}", changed)
    cursor.execute(f"UPDATE total SET n = {mark}", (n,))
    database.commit()
    os.write(notes, b"%d\\n" % n)
'''
CHECK = '''#!/usr/bin/python3
"""What the database itself says of its files; then the last line, of which every one before it must be there. 0: none yet."""
import glob, subprocess, sys
from common import connect

kind = sys.argv[1]


def run(*words):
    done = subprocess.run(words, capture_output=True, text=True)
    sys.exit(f"{words[0]}: {done.returncode}: {done.stdout}{done.stderr}") if done.returncode else None
    return done.stdout


if kind == "postgres":
    (tool,) = glob.glob("/usr/lib/postgresql/*/bin/pg_amcheck")
    words = [tool, "--host=/run/postgresql", "--username=postgres", "--all", "--install-missing"]
    run(*words, "--heapallindexed", "--parent-check")
if kind == "mariadb":
    lines = run("mariadb-check", "--all-databases", "--extended").splitlines()
    bad = [line for line in lines if not line.endswith("OK")]
    sys.exit(f"CHECK TABLE: {bad or lines}") if bad or not lines else None
database, _ = connect(kind)
cursor = database.cursor()
if kind == "sqlite":
    found = cursor.execute("PRAGMA integrity_check").fetchall()
    sys.exit(f"integrity_check: {found}") if found != [("ok",)] else None
try:
    cursor.execute("SELECT COUNT(*), MIN(n), MAX(n) FROM line")
except Exception as error:
    print(f"nothing was written yet: {error}", 0, sep="\\n")
    sys.exit()
count, first, last = cursor.fetchone()
cursor.execute("SELECT n FROM total")
total = cursor.fetchone()[0]
sys.exit(f"{count} lines from {first} to {last}, of {total}") if not count == last == total or first != 1 else None
print(last)
'''
IMAGE = Recipe(
    "fractal-test/databases:1",
    ("postgresql", "mariadb-server", "python3-minimal", "python3-psycopg2", "python3-pymysql"),
    shell=(
        "rm -rf /var/lib/mysql/* /var/lib/postgresql/* /var/cache/apt/* /var/lib/apt/lists/* /var/log/*.log",
    ),
    left_out=(
        "/usr/bin/aria_*",
        "/usr/bin/myisam*",
        "/usr/lib/*/libLLVM*",
        "/usr/lib/postgresql/*/lib/bitcode/*",
        "/usr/share/mysql/*/errmsg.sys.bak",
    ),
    settings=("ENV PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",),
)
PROGRAMS = {"postgres": POSTGRES, "mariadb": MARIADB, "common.py": COMMON, "writer": WRITER, "check": CHECK}


def manifest() -> str:
    """Its services; programs come along as configs, so that an image outlives a change of them."""
    probes = {
        "postgres": ["pg_isready", "-h", "/run/postgresql"],
        "mariadb": ["mariadb-admin", "ping", "--silent"],
    }
    services: dict[str, object] = {}
    for kind in KINDS:
        service: dict[str, object] = {"image": IMAGE.name, "volumes": [f"{kind}:/data"]}
        service["configs"] = [{"source": name, "target": f"/app/{name}"} for name in PROGRAMS]
        service["command"] = ["sh", f"/app/{kind}"] if kind in PROGRAMS else ["sleep", "infinity"]
        if kind in probes:
            times = {"interval": "1s", "timeout": "20s", "retries": 60, "start_period": "60s"}
            service["healthcheck"] = {"test": ["CMD", *probes[kind]], **times}
        else:
            service["stop_signal"] = "SIGKILL"
        services[kind] = service
    configs = {name: {"content": text.replace("$", "$$")} for name, text in PROGRAMS.items()}
    volumes: dict[str, object] = dict.fromkeys(KINDS)
    return json.dumps({"name": "databases", "services": services, "configs": configs, "volumes": volumes})


@dataclass
class Databases:
    """The app on its device."""

    world: World
    device: Device
    name: str = "databases"
    acknowledged: dict[str, dict[str, int]] = field(default_factory=dict)
    """Moment -> what each database had acknowledged before it was begun."""

    @classmethod
    def install(cls, world: World, device: Device) -> Databases:
        """Install it, with writers at work."""
        assert device.engine is not None
        world.say("the image is loaded")
        device.engine.load(IMAGE.archive(), IMAGE.name, list(IMAGE.settings))
        path = world.folder / "databases.yml"
        path.write_text(manifest())
        device.run(
            *("app", "install", str(path), "--group", GROUP, "--device", device.name),
            *("--interval", "3600", "--wait", str(UP)),
        )
        world.say("installed")
        app = cls(world, device)
        for kind in KINDS:
            begin = (
                f"setsid python3 /app/writer {kind} >/run/writer 2>&1 </dev/null & echo $! >/run/writer.pid"
            )
            app.run(kind, begin)
        until(lambda: min(app.noted().values()) > 0, 30, "every database has acknowledged something")
        return app

    def run(self, kind: str, script: str, app: str = "") -> str:
        """Run a shell script inside a service; its output. Raises AssertionError unless it exits with 0."""
        argv = ["/bin/sh", "-c", script]
        done = self.device.call(
            "app.exec", group=GROUP, app=app or self.name, service=kind, argv=argv, timeout_s=120
        )
        assert done["exit_code"] == 0, f"{app or self.name}: {kind}: {done['output'][-2000:]}"
        return str(done["output"])

    def noted(self) -> dict[str, int]:
        """The last commit that each database has acknowledged."""
        script = "[ ! -e /run/acknowledged ] || tail -n 1 /run/acknowledged"
        return {kind: int(self.run(kind, script).strip() or 0) for kind in KINDS}

    def save(self) -> None:
        """Take a snapshot, and remember what has to be in it."""
        noted = self.noted()
        self.acknowledged[self.device.save(self.name)] = noted
        self.world.say(f"saved with at least {noted}")

    def save_busy(self, times: int, every: float) -> None:
        """Take snapshots at an interval while the writers go on."""
        began, before = time.monotonic(), self.noted()
        for number in range(1, times + 1):
            self.save()
            time.sleep(max(0.0, began + number * every - time.monotonic()))
        after, seconds = self.noted(), time.monotonic() - began
        assert all(after[kind] > before[kind] for kind in KINDS), "all were written to"
        for kind in KINDS:
            self.world.figure(f"{kind}: commits a second", f"{(after[kind] - before[kind]) / seconds:.0f}")

    def every_moment_holds(self) -> int:
        """End the writers, restore and start each kept moment, and have each database look at itself; how many there were."""
        for kind in KINDS:
            self.run(kind, "read pid </run/writer.pid; kill $pid")  # it wrote until now
        moments = self.device.moments(self.name)
        assert set(self.acknowledged) <= set(moments), "none of them was given up"
        for moment in moments:
            self._holds(moment)
        return len(moments)

    def _holds(self, moment: str) -> None:
        device, name = self.device, f"fork-{moment}"
        words = ("--group", GROUP, "--at", moment, "--device", device.name)
        try:
            device.run("app", "fork", self.name, name, *words)
            until(lambda: device.runs(name), UP, f"{moment} starts")
        except (AssertionError, Failed) as error:
            logs = device.run("app", "logs", name, "--group", GROUP)
            raise AssertionError(f"{moment} does not start: {error}\n{device.app(name)}\n{logs}") from error
        for kind, least in self.acknowledged.get(moment, dict.fromkeys(KINDS, 0)).items():
            held = int(self.run(kind, f"python3 /app/check {kind}", name).split()[-1])
            assert held >= least, f"{moment}: {kind} had acknowledged {least} and holds {held}"
        device.run("app", "remove", name, "--group", GROUP, "--yes")
        self.world.say(f"{moment} starts, and every database finds itself sound")
