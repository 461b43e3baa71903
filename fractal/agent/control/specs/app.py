"""The `app` commands."""

from __future__ import annotations

from fractal.agent.control.contract import (
    Items,
    Kind,
    Nested,
    Param,
    Shape,
    Spec,
    changes,
    flag,
    integer,
    number,
    reads,
    text,
    texts,
)
from fractal.agent.control.specs.status import APP

NAME = Param(Kind.TEXT, "App, by name or id.", required=True)
AT = Param(
    Kind.TEXT,
    "A moment: EPOCH.NUMBER of a snapshot, a time (`2026-05-01T12:00`, `yesterday 10:00`, local unless it says otherwise) or "
    "an age (`90s`, `2h`, `3 days ago`). A time or age means the newest snapshot that is not younger. Left out: the newest.",
)
WAIT = Param(Kind.NUMBER, "Seconds to wait until it is so; 0 returns at once. 120 if left out.")
DONE: Shape = {
    "app": text("Id of the app."),
    "done": flag("Whether it was so before the wait ended; false is no failure, the agents go on."),
}

POLICY: Shape = {
    "failover": text("`automatic` or `manual`."),
    "on_isolation": text("`freeze` or `keep` (only with manual failover)."),
    "interval_s": number("Seconds between snapshots."),
    "standby": integer("How many devices keep a warm copy."),
    "devices": texts("Names of preferred devices, best first; empty: all eligible ones."),
    "trust": text("`group`, `member` or `list`: whose devices get the app's key."),
    "keep": Nested(
        "Which snapshots stay. Pinned ones always do.",
        {
            "all_s": number("Seconds for which every snapshot stays."),
            "hourly": integer("How many last snapshots of an hour stay."),
            "daily": integer("Likewise of days."),
            "weekly": integer("Likewise of weeks."),
            "bytes": integer("What all of them may take in the store; 0: no limit. The oldest go first."),
        },
    ),
    "mirrors": texts("Names of further stores that hold copies of its archive."),
}

SPECS: tuple[Spec, ...] = (
    changes(
        "app.install",
        "Install an app from a catalog or from a manifest.",
        {
            "app": Param(Kind.TEXT, "Name of the app in a catalog; with `manifest` only its name here."),
            "manifest": Param(Kind.TEXT, "The manifest's text, instead of a catalog's."),
            "source": Param(Kind.TEXT, "Path of the manifest's file, by which faults in it are named."),
            "files": Param(Kind.TABLE, "Texts of the files beside it that it names, by path; never logged."),
            "allow": Param(Kind.LIST, "What it may have of a device, such as `host-path:/srv/media`."),
            "images": Param(Kind.TABLE, "Images by service, for those that the manifest would build."),
            "contexts": Param(
                Kind.TABLE,
                "What it builds -> id of its context, as `app.context` gave it, or empty for a dry run; by service, or by image where it has a name.",
            ),
            "name": Param(Kind.TEXT, "Its name in the group, if it is to differ."),
            "device": Param(Kind.TEXT, "Device to run on, by name or id. Left out: the best placed one."),
            "store": Param(Kind.TEXT, "Store for its archive. Left out: the group's only one."),
            "routes": Param(Kind.LIST, "Public names that lead to it."),
            "env": Param(
                Kind.TABLE,
                "Values for the manifest's variables; sealed wherever they go to `environment` only; never logged.",
            ),
            "secrets": Param(
                Kind.TABLE,
                "Values of secrets and of variables that are never to be seen, by name; never logged.",
            ),
            "interval_s": Param(Kind.NUMBER, "Seconds between snapshots."),
            "wait_s": WAIT,
        },
        {
            **DONE,
            "name": text("Its name."),
            "device": text("Name of the device that it was placed on."),
            "health": text("Its health when the wait ended."),
            "routes": texts("Its public names."),
        },
    ),
    reads(
        "app.list",
        "The apps of a group.",
        {},
        {
            "apps": Items("By name.", APP),
            "removed": Items(
                "Apps that were removed; their archives stay.",
                {
                    "id": text("By which `snapshot list`, `snapshot copy` and `app fork` take it."),
                    "name": text("Its last name."),
                    "store": text("Store that holds its archive."),
                },
            ),
        },
    ),
    reads(
        "app.show",
        "Everything about one app.",
        {"app": NAME},
        {
            "app": Nested("As in `status`.", APP),
            "store": text("Name of its store."),
            "policy": Nested("How it is treated.", POLICY),
            "services": Items(
                "What it is made of; facts of this moment where this device runs it.",
                {
                    "name": text("Name of the service."),
                    "image": text("Container image; empty for a process."),
                    "health": text("Health of the service; `unknown` where it is not seen from here."),
                    "restarts": integer("How often it was restarted."),
                    "detail": text("Last line worth showing."),
                },
            ),
            "volumes": texts("Its volumes."),
            "routes": texts("Its public names."),
            "secrets": texts("Names of its secrets."),
            "branches": Items(
                "Work of replaced owners, kept.",
                {
                    "moment": text("EPOCH.NUMBER of its last snapshot."),
                    "device": text("Device that wrote it."),
                    "wall_ms": integer("When, by that device's clock, in milliseconds since 1970."),
                },
            ),
            "manifest": text("The manifest's text."),
        },
    ),
    reads(
        "app.secret",
        "The value of one of an app's secrets, for whoever administers a device that holds its key.",
        {"app": NAME, "secret": Param(Kind.TEXT, "Its name.", required=True)},
        {"value": text("The value, in clear.")},
    ),
    changes("app.start", "Let an app run.", {"app": NAME, "wait_s": WAIT}, DONE),
    changes("app.stop", "Stop an app and keep it stopped.", {"app": NAME, "wait_s": WAIT}, DONE),
    changes(
        "app.restart", "Stop an app and start it again where it is.", {"app": NAME, "wait_s": WAIT}, DONE
    ),
    changes(
        "app.remove",
        "Stop an app, store its last snapshot and remove it. Its archive stays in the store.",
        {
            "app": NAME,
            "force": Param(Kind.FLAG, "Remove it though its last snapshot cannot be stored before."),
            "discard": Param(
                Kind.FLAG,
                "Of an app that was removed before: delete what this device holds of it that is in no store yet.",
            ),
            "wait_s": WAIT,
        },
        DONE,
    ),
    reads(
        "app.logs",
        "What an app's services print.",
        {
            "app": NAME,
            "service": Param(Kind.TEXT, "Only this service."),
            "tail": Param(
                Kind.INTEGER, "Last lines of each service; 0 means all that is kept. 100 if left out."
            ),
            "follow": Param(Kind.FLAG, "Go on with new lines until the caller hangs up."),
        },
        {"lines": integer("How many were sent.")},
        output={"service": text("Service that printed it."), "line": text("One line, without its end.")},
    ),
    reads(
        "app.exec",
        "Run a command inside a service.",
        {
            "app": NAME,
            "service": Param(Kind.TEXT, "Service; left out: the web service, else the only one."),
            "argv": Param(Kind.LIST, "Command and arguments; no shell.", required=True),
            "stdin": Param(Kind.TEXT, "Text for its standard input."),
            "timeout_s": Param(Kind.NUMBER, "Seconds before it is killed. 60 if left out."),
        },
        {
            "exit_code": integer("What it exited with."),
            "output": text("Standard output and error together; bytes that are not UTF-8 are replaced."),
        },
    ),
    reads(
        "app.terminal",
        "Run a command inside a service at a terminal, until it ends or the caller hangs up. Only on the device that runs it.",
        {
            "app": NAME,
            "service": Param(Kind.TEXT, "Service; left out: the web service, else the only one."),
            "argv": Param(Kind.LIST, "Command and arguments; no shell.", required=True),
            "rows": Param(Kind.INTEGER, "Size of the window in characters; 24 if left out."),
            "columns": Param(Kind.INTEGER, "80 if left out."),
            "term": Param(Kind.TEXT, "Kind of the caller's terminal, as in `TERM`."),
        },
        {"exit_code": integer("What it exited with.")},
        output={
            "terminal": text("Its name for `app.type`; the same in each line."),
            "data": text("What it shows, in base64; empty in the first line."),
        },
    ),
    reads(
        "app.type",
        "Type into a terminal that `app.terminal` has open, or tell it another size.",
        {
            "terminal": Param(Kind.TEXT, "Its name.", required=True),
            "data": Param(Kind.TEXT, "What to type, in base64."),
            "rows": Param(Kind.INTEGER, "New size of the window; with `columns`."),
            "columns": Param(Kind.INTEGER, "New size of the window; with `rows`."),
        },
        {},
    ),
    changes(
        "app.move",
        "Move an app to another device while it runs.",
        {
            "app": NAME,
            "device": Param(Kind.TEXT, "Device to move to.", required=True),
            "wait_s": WAIT,
        },
        {**DONE, "device": text("Name of the device that it moves to.")},
    ),
    changes(
        "app.restore",
        "Bring an app back to an earlier moment. Its present state is kept as a snapshot first.",
        {"app": NAME, "at": AT, "wait_s": WAIT},
        {**DONE, "moment": text("EPOCH.NUMBER of the snapshot.")},
    ),
    changes(
        "app.fork",
        "Start a second app from a moment of this one.",
        {
            "app": NAME,
            "name": Param(Kind.TEXT, "Name of the new app.", required=True),
            "at": AT,
            "device": Param(Kind.TEXT, "Device for the new app. Left out: the best placed one."),
            "wait_s": WAIT,
        },
        {
            **DONE,
            "name": text("Name of the new app."),
            "device": text("Name of the device that it was placed on."),
            "moment": text("EPOCH.NUMBER of the snapshot that it starts from."),
        },
    ),
    changes(
        "app.policy",
        "Change how an app is treated; without any change, show it.",
        {
            "app": NAME,
            "failover": Param(Kind.TEXT, "`automatic` or `manual`."),
            "on_isolation": Param(Kind.TEXT, "`freeze` or `keep`."),
            "interval_s": Param(Kind.NUMBER, "Seconds between snapshots."),
            "standby": Param(Kind.INTEGER, "How many devices keep a warm copy."),
            "devices": Param(Kind.LIST, "Preferred devices, best first."),
            "trust": Param(Kind.TEXT, "`group`, `member` or `list`."),
            "keep_all_s": Param(Kind.NUMBER, "Seconds for which every snapshot stays; at most a week."),
            "keep_hourly": Param(Kind.INTEGER, "How many last snapshots of an hour stay, 0 to 1000."),
            "keep_daily": Param(Kind.INTEGER, "Likewise of days."),
            "keep_weekly": Param(Kind.INTEGER, "Likewise of weeks."),
            "keep_bytes": Param(Kind.INTEGER, "What all of them may take in the store; 0: no limit."),
            "mirrors": Param(
                Kind.LIST,
                "Further stores, by name or id, that are to hold copies of its archive: all of them, three at most; "
                "an empty list: none.",
            ),
        },
        {"app": text("Id of the app."), "policy": Nested("As it is now.", POLICY)},
    ),
    changes(
        "app.update",
        "Give an app a new manifest, new values or a new name.",
        {
            "app": NAME,
            "manifest": Param(Kind.TEXT, "The new manifest's text. Left out: the catalog's present one."),
            "source": Param(Kind.TEXT, "Path of the manifest's file, by which faults in it are named."),
            "files": Param(Kind.TABLE, "Texts of the files beside it that it names, by path; never logged."),
            "allow": Param(Kind.LIST, "What it may have of a device, such as `host-path:/srv/media`."),
            "images": Param(Kind.TABLE, "Images by service, for those that the manifest would build."),
            "contexts": Param(
                Kind.TABLE,
                "What it builds -> id of its context, as `app.context` gave it, or empty for a dry run; by service, or by image where it has a name.",
            ),
            "name": Param(Kind.TEXT, "New name."),
            "env": Param(
                Kind.TABLE,
                "Values for the manifest's variables; sealed wherever they go to `environment` only; never logged.",
            ),
            "secrets": Param(Kind.TABLE, "New secret values by name; never logged."),
            "wait_s": WAIT,
        },
        DONE,
    ),
)
