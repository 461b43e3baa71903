"""The `store`, `gateway`, `route`, `catalog` and `agent` commands."""

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
    table,
    text,
    texts,
)

STORE: Shape = {
    "id": text("Id of the store."),
    "name": text("Its name."),
    "backend": text("Its backend."),
    "config": table("Its settings; values of secret ones are shown as `***`."),
    "apps": texts("Names of the apps whose archives it holds."),
    "mirrors": texts("Names of the apps of whose archives it holds copies."),
}
GATEWAY: Shape = {
    "device": text("Id of the device."),
    "name": text("Its name."),
    "address": text("Its public host name or address."),
    "up": flag("Whether this device reaches it now; null when that cannot be told.", null=True),
    "last_seen_s": number("Seconds since the link was last seen alive; null if never.", null=True),
    "detail": text("What the transport says about the link."),
}
ROUTE: Shape = {
    "name": text("Public name, or `:PORT`."),
    "kind": text("`https`, `tcp` or `udp`."),
    "app": text("Name of the app."),
    "service": text("Service that it leads to; empty: the manifest's web service."),
    "port": text("Name of that service's port; empty: the manifest's web port."),
    "device": text("Name of the device that serves it now; empty while none does."),
    "certificate": text(
        "PEM chain that clients see, to trust where it is self-signed; empty where this device cannot know it."
    ),
}
STORE_NAME = Param(Kind.TEXT, "Store, by name or id.", required=True)

SPECS: tuple[Spec, ...] = (
    reads("store.list", "The stores of a group.", {}, {"stores": Items("By name.", STORE)}),
    changes(
        "store.add",
        "Add a store for archives.",
        {
            "name": Param(Kind.TEXT, "Name of the store.", required=True),
            "backend": Param(Kind.TEXT, "Its backend, as `plugin list` shows it.", required=True),
            "config": Param(Kind.TABLE, "The backend's settings."),
        },
        {
            "store": text("Id of the store."),
            "name": text("Its name."),
            "fencing": flag("Whether it can fence."),
            "weakness": text("Why it cannot; empty if it can."),
        },
    ),
    reads(
        "store.check",
        "Try a store from this device: create, read, list, refuse to overwrite, delete.",
        {"store": STORE_NAME},
        {
            "store": text("Id of the store."),
            "fencing": flag(
                "Whether it promises create-only writes; without it there is no automatic failover."
            ),
            "weakness": text("Why it does not; empty if it does."),
            "staleness_s": number("Seconds by which it says its listings may lag."),
            "seconds": number("How long the check took."),
            "steps": Items(
                "What was tried.",
                {
                    "step": text("What."),
                    "ok": flag("Whether it did what it must."),
                    "detail": text("What it did instead; empty if ok."),
                },
            ),
        },
    ),
    changes(
        "store.remove",
        "Forget a store that no app uses. What it holds stays there.",
        {"store": STORE_NAME},
        {"store": text("Id of the store.")},
    ),
    reads("gateway.list", "The gateways of a group.", {}, {"gateways": Items("By name.", GATEWAY)}),
    changes(
        "gateway.add",
        "Make a device of the group a gateway.",
        {
            "device": Param(Kind.TEXT, "Device, by name or id.", required=True),
            "address": Param(Kind.TEXT, "Its public host name or address."),
        },
        {"device": text("Id of the device.")},
    ),
    changes(
        "gateway.remove",
        "Let a device be a gateway no longer.",
        {"device": Param(Kind.TEXT, "Device, by name or id.", required=True)},
        {"device": text("Id of the device.")},
    ),
    reads("route.list", "The public names of a group.", {}, {"routes": Items("By name.", ROUTE)}),
    changes(
        "route.add",
        "Lead a public name to an app.",
        {
            "name": Param(Kind.TEXT, "DNS name; for TCP and UDP `:PORT`.", required=True),
            "app": Param(Kind.TEXT, "App, by name or id.", required=True),
            "kind": Param(Kind.TEXT, "`https` (if left out), `tcp` or `udp`."),
            "service": Param(Kind.TEXT, "Service that it leads to."),
            "port": Param(Kind.TEXT, "Name of that service's port."),
        },
        {"name": text("The name as written to the log."), "app": text("Id of the app.")},
    ),
    changes(
        "route.remove",
        "Give a public name up.",
        {"name": Param(Kind.TEXT, "The name.", required=True)},
        {"name": text("The name.")},
    ),
    reads(
        "catalog.list",
        "The apps that the catalogs of this device offer.",
        {
            "catalog": Param(Kind.TEXT, "Only this catalog."),
            "search": Param(Kind.TEXT, "Only apps with all these words in name, title or summary."),
        },
        {
            "items": Items(
                "By name.",
                {
                    "name": text("Name for `app install`."),
                    "title": text("Its title."),
                    "summary": text("What it is."),
                    "version": text("Its version; empty if the catalog does not say."),
                    "catalog": text("Name of the catalog."),
                },
            ),
            "failed": texts("Catalogs that could not be read, and why."),
        },
        group=False,
    ),
    reads(
        "catalog.show",
        "The manifest of an app in a catalog.",
        {
            "app": Param(Kind.TEXT, "Its name.", required=True),
            "catalog": Param(Kind.TEXT, "Only this catalog."),
        },
        {"name": text("Its name."), "catalog": text("Name of the catalog."), "manifest": text("The text.")},
        group=False,
    ),
    changes(
        "catalog.add",
        "Offer the manifests of a folder of this device, such as a checkout of a repository.",
        {
            "name": Param(Kind.TEXT, "What to call it: characters of [a-z0-9_-].", required=True),
            "path": Param(Kind.TEXT, "Absolute path of the folder.", required=True),
        },
        {"name": text("Its name.")},
        group=False,
    ),
    changes(
        "catalog.remove",
        "No longer offer a catalog that was added. Installed apps stay.",
        {"name": Param(Kind.TEXT, "Its name.", required=True)},
        {"name": text("Its name.")},
        group=False,
    ),
    reads(
        "agent.status",
        "How this device's agent is.",
        {},
        {
            "version": text("Its version."),
            "device": text("Id of this device."),
            "name": text("Name of this device."),
            "pid": integer("Process id."),
            "up_s": number("Seconds since it started."),
            "guard": text("`holding`, or what is wrong with the guard."),
            "backends": table("Kind -> name of the backend in use."),
            "jobs": table("What the agent does at present: job -> state."),
            "groups": integer("How many groups it takes part in."),
            "config": text("Path of its configuration."),
        },
        group=False,
    ),
)
