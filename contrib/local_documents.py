"""JSON documents of commands that need no agent, by command line. The rest of the reference is in `fractal.agent.control.specs`."""

from __future__ import annotations

from collections.abc import Mapping

from fractal.agent.control.contract import (
    PLAN,
    Items,
    Kind,
    Leaf,
    Nested,
    Shape,
    flag,
    integer,
    text,
    texts,
)

LOCAL: Mapping[str, Shape] = {
    "agent install": {
        "dry_run": flag("True: nothing was written."),
        "path": text("Where the unit is, or would be."),
        "unit": text("Its text."),
        "next": texts("Commands to run next."),
    },
    "config check": {
        "file": text("Path of the configuration."),
        "ok": flag("Whether nothing is wrong with it."),
        "problems": Items(
            "All that is wrong.",
            {
                "line": integer("Line in the file; 0 if it has none.", null=True),
                "key": text("Key, with dots."),
                "message": text("What is wrong with it."),
            },
        ),
    },
    "config init": {
        "plan": PLAN["plan"],
        "file": text("Path of the configuration."),
        "done": flag("Whether it was written."),
    },
    "plugin list": {
        "backends": Items(
            "Every backend of every plugin.",
            {
                "plugin": text("Name of the plugin."),
                "distribution": text("Distribution that brings it."),
                "kind": text("`runtime`, `snapshot`, `store`, `transport`, `coordination` or `catalog`."),
                "name": text("Name for the configuration."),
                "summary": text("What it is."),
            },
        ),
        "others": Items(
            "Plugins that do something else too.",
            {
                "plugin": text("Name of the plugin."),
                "observer": flag("Whether it observes events."),
                "checks": texts("Names of its health checks."),
            },
        ),
        "broken": Items(
            "Plugins that cannot be used.",
            {"plugin": text("Name of the plugin."), "reason": text("Why.")},
        ),
    },
    "plugin show": {
        "backends": Items(
            "Every backend of that name.",
            {
                "kind": text("Its kind."),
                "name": text("Its name."),
                "summary": text("What it is."),
                "api": integer("Version of the plugin API that it was written for."),
                "isolates": flag("Runtimes: whether apps are kept apart from the device."),
                "capabilities": texts("Optional abilities."),
                "settings": Items(
                    "What can be configured.",
                    {
                        "name": text("Key in the backend's table."),
                        "type": text("Its type."),
                        "required": flag("Whether it must be given."),
                        "default": Leaf(Kind.ANY, "What it is if left out.", null=True),
                        "help": text("What it means."),
                    },
                ),
            },
        )
    },
    "plugin check": {
        "checks": Items(
            "One per backend of that name.",
            {
                "kind": text("Its kind."),
                "name": text("Its name."),
                "ok": flag("Whether it keeps its contract here."),
                "probe": Nested(
                    "What it says of its tools; null if it has no probe.",
                    {
                        "ready": flag("Whether they are there."),
                        "detail": text("Version and place, or what is missing."),
                    },
                    null=True,
                ),
                "tests": Items(
                    "The contract's tests.",
                    {
                        "test": text("Name."),
                        "result": text("`passed`, `failed`, `skipped` or `error`."),
                        "detail": text("Why."),
                    },
                ),
                "note": text("Why there are no tests, where there are none."),
            },
        )
    },
}
