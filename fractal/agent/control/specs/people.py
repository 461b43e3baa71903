"""The `group`, `device` and `member` commands."""

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
from fractal.agent.control.specs.status import APP, DEVICE, GROUP

DEVICE_NAME = Param(Kind.TEXT, "Device, by name or id.", required=True)
MEMBER_NAME = Param(Kind.TEXT, "Member, by name or id.", required=True)
MEMBER: Shape = {
    "id": text("Id of the member."),
    "name": text("Name."),
    "role": text("`owner`, `admin` or `member`."),
    "devices": texts("Names of the member's devices."),
}
REQUEST: Shape = {
    "id": text("Id that the device will have."),
    "name": text("What it calls itself."),
    "member": text("Member that it belongs to; a new one's name if `new_member`."),
    "new_member": flag("Whether a new member comes with it."),
    "invited_by": text("Device that showed the code."),
}

SPECS: tuple[Spec, ...] = (
    changes(
        "group.create",
        "Create a group with this device as its first.",
        {
            "name": Param(Kind.TEXT, "Name of the group.", required=True),
            "member": Param(Kind.TEXT, "Your own name in it. Left out: that of this device's user."),
            "timers": Param(Kind.TEXT, "Failover profile: `standard`, `fast` or `patient`."),
        },
        {"group": text("Id of the group."), "name": text("Its name.")},
        group=False,
    ),
    reads(
        "group.list",
        "The groups that this device is in.",
        {},
        {
            "groups": Items(
                "By name.",
                {
                    "id": text("Id of the group."),
                    "name": text("Its name."),
                    "members": integer("How many."),
                    "devices": integer("How many."),
                    "apps": integer("How many."),
                },
            )
        },
        group=False,
    ),
    reads(
        "group.show",
        "One group: its settings, members, devices and open invitations.",
        {},
        {
            "group": Nested("As in `status`.", GROUP),
            "timers": Nested(
                "Failover timers.",
                {
                    "profile": text("Its name."),
                    "beat_s": number("Seconds between signals."),
                    "patience_s": number("Silence after which a device is suspected."),
                    "answer_window_s": number("Time to answer a challenge."),
                    "proof_s": number("How old a proof of ownership may be."),
                    "margin_s": number("Added to that by whoever takes over."),
                },
            ),
            "members": Items("By name.", MEMBER),
            "devices": Items("By name.", DEVICE),
            "invitations": Items(
                "Open ones.",
                {
                    "id": text("Id of the invitation."),
                    "member": text("Member that the device will belong to; empty for a new member."),
                    "role": text("Role of a new member."),
                    "by": text("Device that invited."),
                    "expires_ms": integer("When it ends, in milliseconds since 1970."),
                },
            ),
            "stores": texts("Names of its stores."),
            "key_generation": integer("Generation of the group key."),
        },
    ),
    changes(
        "group.invite",
        "Make a code with which one device can ask to join.",
        {
            "new_member": Param(Kind.FLAG, "The code is for a new member, not for one more device of yours."),
            "contact": Param(
                Kind.TEXT, "Who they are to the coordination backend (a Matrix id), where it must know."
            ),
            "role": Param(Kind.TEXT, "Role of a new member: `member`, `admin` or `owner`."),
            "valid_s": Param(Kind.NUMBER, "Seconds that the code is valid. 86400 if left out."),
        },
        {
            "code": text("The code: show it to nobody else."),
            "invitation": text("Id of the invitation."),
            "expires_ms": integer("When it ends, in milliseconds since 1970."),
        },
    ),
    changes(
        "group.join",
        "Ask to join a group and wait until somebody approves.",
        {
            "code": Param(Kind.TEXT, "The code shown by `group invite`.", required=True),
            "member": Param(Kind.TEXT, "Your name in the group, if the code is for a new member."),
            "wait_s": Param(Kind.NUMBER, "Seconds to wait. 600 if left out; 0 only asks."),
        },
        {
            "state": text("`joined`, or `waiting`: run the same command again to go on waiting."),
            "group": text("Id of the group."),
            "name": text("Its name; empty while waiting."),
            "device": text("Id of this device, as `device list` shows it to the one who approves."),
        },
        group=False,
    ),
    changes(
        "group.leave",
        "Take this device out of a group. Its apps must have moved away.",
        {"force": Param(Kind.FLAG, "Leave even if it still owns apps or cannot reach the log.")},
        {"group": text("Id of the group.")},
    ),
    reads(
        "device.list",
        "The devices of a group and those that ask to join.",
        {},
        {"devices": Items("By name.", DEVICE), "pending": Items("Asking to join.", REQUEST)},
    ),
    changes(
        "device.approve",
        "Let a device in that asks to join.",
        {
            "device": Param(Kind.TEXT, "Its name or id as `device list` shows it.", required=True),
            "name": Param(Kind.TEXT, "Name to give it, if it is to differ."),
        },
        {"device": text("Id of the device."), "name": text("Its name.")},
    ),
    changes(
        "device.rename",
        "Give a device another name.",
        {"device": DEVICE_NAME, "name": Param(Kind.TEXT, "New name.", required=True)},
        {"device": text("Id of the device."), "name": text("Its name.")},
    ),
    changes(
        "device.remove",
        "Take a device out of the group and renew the keys that it knew.",
        {"device": DEVICE_NAME},
        {"device": text("Id of the device."), "key_generation": integer("Generation of the new group key.")},
    ),
    changes(
        "device.drain",
        "Move all apps away from a device and let it take none.",
        {
            "device": DEVICE_NAME,
            "off": Param(Kind.FLAG, "Let it take apps again."),
            "wait_s": Param(Kind.NUMBER, "Seconds to wait until it owns no app. 0 if left out."),
        },
        {
            "device": text("Id of the device."),
            "draining": flag("As it is now."),
            "done": flag(
                "Whether it owns no app any more, if it is to; false is no failure, the agents go on."
            ),
            "apps": Items("Apps that it still owns.", APP),
        },
    ),
    reads("member.list", "The members of a group.", {}, {"members": Items("By name.", MEMBER)}),
    changes(
        "member.remove",
        "Take a member and all their devices out of the group and renew the keys that these knew.",
        {"member": MEMBER_NAME},
        {"member": text("Id of the member."), "key_generation": integer("Generation of the new group key.")},
    ),
    changes(
        "member.role",
        "Change what a member may do.",
        {
            "member": MEMBER_NAME,
            "role": Param(Kind.TEXT, "`owner`, `admin` or `member`.", required=True),
        },
        {"member": text("Id of the member."), "role": text("As it is now.")},
    ),
)
