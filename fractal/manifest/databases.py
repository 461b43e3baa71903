"""Databases in an app, by what names them, and how a snapshot of each comes to be consistent. Pure.

What each recovers from is its maker's word: PostgreSQL, "Reliability and the Write-Ahead Log"; MariaDB and MySQL, "InnoDB crash
recovery"; SQLite, "Atomic Commit In SQLite"; MongoDB, "Journaling"; Redis, "Persistence". All of them ask for files of one
instant, over all folders that they write: an app has one volume root, and a snapshot is of all of it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from fractal.api.app import AppSpec, ServiceSpec

WAL = "recovers from its write-ahead log, as after a loss of power"


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of database."""

    name: str
    images: re.Pattern[str]
    folders: tuple[str, ...]
    """Where its image keeps its data."""
    recovers: str
    """What it makes of files as they were at one instant."""


KINDS = (
    Kind(
        "PostgreSQL",
        re.compile(r"postgres|postgis|pgvector|timescale|supabase/postgres|pgvecto"),
        ("/var/lib/postgresql", "/bitnami/postgresql", "/var/lib/pgsql", "/home/postgres/pgdata"),
        WAL,
    ),
    Kind(
        "MariaDB/MySQL",
        re.compile(r"mariadb|mysql|percona"),
        ("/var/lib/mysql", "/bitnami/mariadb", "/bitnami/mysql"),
        "InnoDB tables recover from the redo log, as after a loss of power; tables of MyISAM need hooks that lock them",
    ),
    Kind(
        "MongoDB",
        re.compile(r"mongo(?!-express)"),
        ("/data/db", "/bitnami/mongodb"),
        "recovers from its journal, as after a loss of power",
    ),
    Kind(
        "Redis",
        re.compile(r"redis|valkey|keydb|dragonfly"),
        ("/bitnami/redis", "/bitnami/valkey"),
        "comes back with its last dump, or with `--appendonly yes` up to a second ago; a hook `redis-cli save` makes"
        " each snapshot hold all",
    ),
    Kind(
        "ClickHouse", re.compile(r"clickhouse"), ("/var/lib/clickhouse",), "its parts are whole or not there"
    ),
    Kind(
        "Elasticsearch",
        re.compile(r"elasticsearch|opensearch(?!-dashboards)"),
        ("/usr/share/elasticsearch/data", "/usr/share/opensearch/data"),
        "recovers from its translog, as after a loss of power",
    ),
    Kind(
        "SQLite",
        re.compile(
            r"vaultwarden|uptime-kuma|home-?assistant|navidrome|jellyfin|radarr|sonarr|prowlarr|lidarr|actual|grafana"
            r"|gitea|forgejo|n8n|memos|linkding|trilium|gotify|ntfy|wallos|pocketbase|filebrowser|audiobookshelf|mealie"
        ),
        (),
        "recovers from its journal, as after a loss of power",
    ),
)
_OTHERS = re.compile(r"exporter|admin|commander|backup|insight|proxy|client")
"""In names of images that only use a database."""
_SQLITE = re.compile(r"^(file:|sqlite)|\.sqlite3?$|^/[^:]*\.db3?$|^sqlite3?$", re.IGNORECASE)
"""Values of variables that lead to a file of SQLite's."""
_CONSISTENCY = {
    "crash": "a snapshot is of one instant: at once where the device's file system has such (btrfs, ZFS), else the app is"
    " paused while it is copied",
    "pause": "the app is paused for each snapshot",
    "hook": "the manifest's hooks run before and after each snapshot",
}


def database(service: ServiceSpec) -> Kind | None:
    """Which database a service runs or brings, if one is known by its image, its folders or its variables."""
    name = service.image.lower().rpartition("@")[0] or service.image.lower()
    name = name.rpartition("/")[0].rpartition("/")[2] + "/" + name.rpartition("/")[2].partition(":")[0]
    if _OTHERS.search(name):
        return None
    targets = [mount.target.rstrip("/") for mount in service.mounts]
    for kind in KINDS:
        if kind.images.search(name):
            return kind
        if any(t == f or t.startswith(f"{f}/") for t in targets for f in kind.folders):
            return kind
    words = (*service.env.values(), *(service.process.argv if service.process is not None else ()))
    return KINDS[-1] if any(_SQLITE.search(word) for word in words) else None


def consistency(spec: AppSpec, service: ServiceSpec, kind: Kind) -> str:
    """How a snapshot of it is consistent, in words for whoever installs it."""
    if not any(mount.volume for mount in service.mounts):
        return "it has no volume: nothing of it is kept"
    return f"{_CONSISTENCY[spec.consistency]}; {kind.recovers}"
