"""The `snapshot` commands."""

from __future__ import annotations

from fractal.agent.control.contract import (
    Items,
    Kind,
    Param,
    Shape,
    Spec,
    changes,
    flag,
    integer,
    number,
    reads,
    text,
)
from fractal.agent.control.specs.app import AT, NAME, WAIT

PLAN: Shape = {
    "kept": Items(
        "Moments that stay, oldest first.",
        {
            "moment": text("EPOCH.NUMBER."),
            "wall_ms": integer("When, by its device's clock, in milliseconds since 1970."),
            "why": text("`newest`, `pinned`, `weekly`, `daily`, `hourly`, `recent`, `branch` or `merge`."),
        },
    ),
    "let_go": Items(
        "Records that are let go next, oldest first.",
        {
            "moment": text("EPOCH.NUMBER."),
            "level": integer("0: the snapshot's own; 1 to 3: a merge of an hour, a day, a week."),
            "wall_ms": integer("When, by its device's clock."),
            "bytes": integer("Stored bytes."),
        },
    ),
    "leaving": Items(
        "What was let go and is still in the store.",
        {
            "moment": text("EPOCH.NUMBER."),
            "level": integer("As above."),
            "bytes": integer("Stored bytes."),
            "left_s": number("Seconds of looking until it is removed; known where the app runs."),
        },
    ),
    "merge": text("What is merged next; empty if nothing is, or if the app does not run on this device."),
    "kept_bytes": integer("What the kept moments need."),
    "let_go_bytes": integer("What is let go next."),
    "leaving_bytes": integer("What was let go and is still in the store."),
    "over_bytes": integer("Above the policy's limit, though nothing more can be let go."),
}

SPECS: tuple[Spec, ...] = (
    reads(
        "snapshot.list",
        "The kept moments of an app.",
        {"app": NAME},
        {
            "snapshots": Items(
                "Oldest first.",
                {
                    "moment": text("EPOCH.NUMBER."),
                    "wall_ms": integer("When, by its device's clock, in milliseconds since 1970."),
                    "device": text("Device that took it."),
                    "bytes": integer("Stored bytes of the record that leads there."),
                    "level": integer(
                        "0: it is stored as it was taken; 1 to 3: merged with what was before it in its hour, day or week."
                    ),
                    "pinned": flag("Whether it is kept for ever."),
                    "branch": flag("Whether it is off the app's main line: work of a replaced owner."),
                },
            )
        },
    ),
    changes(
        "snapshot.create",
        "Take a snapshot now and wait until the store has it.",
        {"app": NAME, "wait_s": WAIT},
        {
            "moment": text(
                "EPOCH.NUMBER of the first snapshot committed since; empty if the wait ended before."
            ),
            "done": flag("Whether the store has it."),
        },
    ),
    reads(
        "snapshot.verify",
        "Check an app's archive in its store.",
        {"app": NAME, "deep": Param(Kind.FLAG, "Read and authenticate every byte, not only the records.")},
        {
            "objects": integer("Objects checked."),
            "bytes": integer("Bytes read."),
            "seconds": number("How long it took."),
            "problems": Items(
                "What is wrong; empty when all is well.",
                {"object": text("Key of the object."), "what": text("What is wrong with it.")},
            ),
        },
    ),
    changes(
        "snapshot.repair",
        "Put back what an app's store lost or has damaged and a mirror has, and with `deep` the other way round too.",
        {
            "app": NAME,
            "deep": Param(
                Kind.FLAG, "Look at every byte of every store, not only at what is missing or cut."
            ),
        },
        {
            "mended": Items(
                "What was put back.",
                {
                    "object": text("Key of the object."),
                    "store": text("Name of the store that lacked it."),
                    "source": text("Name of the store that had it."),
                },
            ),
            "left": Items(
                "What could not be put back.",
                {
                    "object": text("Key of the object."),
                    "store": text("Name of the store that lacks it."),
                    "what": text("Why."),
                },
            ),
        },
    ),
    changes(
        "snapshot.pin",
        "Keep a moment for ever, or no longer.",
        {"app": NAME, "at": AT, "off": Param(Kind.FLAG, "Let retention have it again.")},
        {"moment": text("EPOCH.NUMBER."), "pinned": flag("As it is now.")},
    ),
    reads(
        "snapshot.plan",
        "What an app's policy keeps of its snapshots as they are, what it lets go, and what is merged next.",
        {"app": NAME},
        PLAN,
    ),
    reads(
        "snapshot.open",
        "Have a moment in a folder of this device, read-only, for a while.",
        {
            "app": NAME,
            "at": AT,
            "for_s": Param(
                Kind.NUMBER, "Seconds for which the folder stays. 3600 if left out; at most a week."
            ),
        },
        {
            "moment": text("EPOCH.NUMBER."),
            "wall_ms": integer("When, by its device's clock, in milliseconds since 1970."),
            "path": text("The folder. What is in it is the app's: never follow its links."),
            "for_s": number("Seconds for which it stays, unless the agent ends before."),
        },
    ),
    changes(
        "snapshot.prune",
        "Do now what the app's owner does by itself: merge, let go, and remove what was let go a day ago.",
        {"app": NAME},
        {
            "merged": integer("Merges written."),
            "let_go": integer("Snapshots let go."),
            "removed": integer("Records removed from the store."),
            "bytes": integer("Bytes removed from the store."),
        },
    ),
)
