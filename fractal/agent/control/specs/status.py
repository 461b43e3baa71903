"""Shapes of `homeserver status`, which other commands share."""

from __future__ import annotations

from fractal.agent.control.contract import (
    Items,
    Kind,
    Nested,
    Param,
    Shape,
    Spec,
    flag,
    integer,
    number,
    reads,
    text,
    texts,
)

GROUP: Shape = {
    "id": text("Id of the group."),
    "name": text("Its name."),
    "position": integer("Log position up to which this device has folded."),
    "log_age_s": number(
        "Seconds since the log was last read to its end; null before the first time.", null=True
    ),
    "alarms": texts("What is wrong with the group as a whole, one sentence each; empty when all is well."),
    "pending": integer("Devices that ask to join."),
}

DEVICE: Shape = {
    "id": text("Id of the device."),
    "name": text("Its name."),
    "member": text("Name of the member that owns it."),
    "roles": texts("`host`, `store`, `gateway`."),
    "this": flag("Whether it is the device that answers."),
    "online": flag("Whether it was heard lately; null when that cannot be told.", null=True),
    "last_seen_s": number("Seconds since it was last heard; null if never.", null=True),
    "draining": flag("Whether it takes no apps at present."),
    "version": text("Version of its agent."),
}

STANDBY: Shape = {
    "device": text("Name of the device that keeps a warm copy."),
    "behind_s": number("Seconds of data its copy lacks; null when it has none yet.", null=True),
}

EXCLUDED: Shape = {
    "device": text("Name of a device with the role host."),
    "reason": text("Why it cannot run the app."),
}

MIRROR: Shape = {
    "store": text("Name of a further store that holds a copy of its archive."),
    "behind": integer(
        "Records that the copy lacks; null while the app's device has not compared it.", null=True
    ),
    "since_s": number(
        "Seconds for which it has been behind or out of reach; null when it is not.", null=True
    ),
    "problem": text("Why it does not get level; empty when it does."),
}

APP: Shape = {
    "id": text("Id of the app."),
    "name": text("Its name."),
    "device": text("Name of the device that owns it; empty before the first."),
    "epoch": integer("Its highest announced epoch; 0 before the first."),
    "health": text("`healthy`, `starting`, `unhealthy`, `stopped` or `unknown`."),
    "frozen": flag("Whether its processes are frozen for want of proof."),
    "desired": text("`running` or `stopped`: what people want."),
    "last_snapshot_s": number(
        "Age of the last committed snapshot in seconds; null while there is none.", null=True
    ),
    "would_lose_s": number(
        "Seconds of data that would be lost now, never too small; null if unknown.", null=True
    ),
    "unarchived": texts(
        "Its container images that are not in the store yet: a takeover would need a registry."
    ),
    "excluded": Items("Hosts of the group that cannot take it over.", EXCLUDED),
    "mirrors": Items("Further stores with copies of its archive, in the order of its policy.", MIRROR),
    "standby": Items("Devices with warm copies.", STANDBY),
    "route": text("Its first public name; empty without one."),
    "moving_to": text("Name of the device that it is moving to; empty otherwise."),
    "note": text("Why it is not as desired, and what to do; empty when it is."),
}

SPECS: tuple[Spec, ...] = (
    reads(
        "status.show",
        "How every group of this device is, or one of them.",
        {},
        {
            "groups": Items(
                "One per group.",
                {
                    "group": Nested("The group itself.", GROUP),
                    "devices": Items("Its devices, by name.", DEVICE),
                    "apps": Items("Its apps, by name.", APP),
                },
            )
        },
    ),
    reads(
        "doctor.run",
        "Look at everything that this device can see, and say what is wrong.",
        {},
        {
            "checks": texts("What was looked at."),
            "findings": Items(
                "What is wrong; empty when all is well.",
                {
                    "check": text("Where: one of `checks`."),
                    "what": text("What is wrong."),
                    "remedy": text("What to do."),
                    "severe": flag("Whether a promise is broken or about to be."),
                },
            ),
        },
    ),
    reads(
        "log.show",
        "The last entries of a group's log, valid or not.",
        {"tail": Param(Kind.INTEGER, "How many; 0 means all that this device keeps. 50 if left out.")},
        {
            "entries": Items(
                "Oldest first.",
                {
                    "position": integer("Its place in the order."),
                    "author": text(
                        "Name of the device that signed it, its id if unknown, empty if unreadable."
                    ),
                    "kind": text("Kind of entry; empty if it could not be read."),
                    "summary": text("What it says, in one line, without secrets."),
                    "skipped": text("Why the fold did not apply it; empty when it did."),
                },
            )
        },
    ),
)
