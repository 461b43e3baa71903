"""The `snapshot` commands."""

from __future__ import annotations

from fractal.agent.control.contract import (
    Items,
    Kind,
    Param,
    Spec,
    changes,
    flag,
    integer,
    number,
    reads,
    text,
)
from fractal.agent.control.specs.app import AT, NAME, WAIT

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
                    "bytes": integer("What it added to the store."),
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
        "snapshot.pin",
        "Keep a moment for ever, or no longer.",
        {"app": NAME, "at": AT, "off": Param(Kind.FLAG, "Let retention have it again.")},
        {"moment": text("EPOCH.NUMBER."), "pinned": flag("As it is now.")},
    ),
)
