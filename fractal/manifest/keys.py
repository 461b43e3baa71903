"""Keys of Compose files: what is passed on to runtimes, and what is understood and without effect here, with the reason."""

from __future__ import annotations

NETWORK = "an app's networks are its own, shut off from all others; their addresses are the engine's to give"
CLUSTER = "it is for a cluster's scheduler; which device runs an app is the group's to decide"

TOP_IDLE = {"version": "Compose itself ignores it"}
TOP_KEYS = frozenset(
    {"name", "services", "volumes", "networks", "configs", "secrets", "x-homeserver", *TOP_IDLE}
)

OPTION_KEYS = frozenset(
    {
        *("hostname", "init", "read_only", "tmpfs", "shm_size", "cap_add", "cap_drop", "dns", "expose"),
        *("labels", "logging", "mem_reservation", "platform", "privileged", "ulimits", "extra_hosts"),
        *("sysctls", "devices", "group_add", "cpu_shares", "security_opt", "stdin_open", "oom_score_adj"),
        *("pid", "ipc", "uts", "cgroup", "dns_search", "dns_opt", "memswap_limit", "device_cgroup_rules"),
    }
)
"""Kept as they are for runtimes that honour them."""
FLAG_OPTIONS = frozenset({"init", "read_only", "privileged", "stdin_open"})

IDLE = {
    "annotations": "they are for tools around the engine",
    "attach": "nothing is attached to: see `homeserver app logs`",
    "container_name": "containers are named by the system, so that two copies of an app can run on one device; the app's services find it by that name too",
    "tty": "nobody has a terminal at it; its standard input stays open instead",
    "develop": "it is for working on an image",
    "userns_mode": "the engine's own way is taken",
    "cgroup_parent": "where an app's processes are counted is the system's to say",
    "cpuset": "devices have different processors; `cpus` says how many an app may use",
    "blkio_config": "devices have different disks, and most of them know no weights",
    "storage_opt": "what a container writes beside its volumes is nothing that is kept, and its engine's to bound",
    **dict.fromkeys(
        ("mem_swappiness", "oom_kill_disable", "cpu_rt_period", "cpu_rt_runtime"),
        "cgroup v2 has no such setting",
    ),
    **dict.fromkeys(("cpu_count", "cpu_percent", "credential_spec", "isolation"), "it is for Windows"),
    "mac_address": "addresses are the engine's to give",
}
"""Of services: key -> why it is without effect."""
DEPLOY_IDLE = {
    **dict.fromkeys(("endpoint_mode", "placement", "update_config", "rollback_config"), CLUSTER),
    "labels": "they are for a cluster's services, not for containers",
}
VOLUME_IDLE = {
    "name": "volumes are folders of the app, named by their key",
    "external": "the app begins with a folder of its own; fill it with `homeserver app exec`",
    "labels": "volumes are folders of the app, and folders have no labels",
}
NETWORK_DRIVERS = dict.fromkeys(
    ("macvlan", "ipvlan", "overlay"),
    "an app's networks are bridges of its own on one device: routes lead in, and only `network_mode: host` hears what others in"
    " the device's network send to all",
)
"""Drivers that a bridge stands in for -> why that is said."""
NETWORK_IDLE = dict.fromkeys(
    (
        *("name", "external", "labels", "ipam", "attachable", "enable_ipv4", "enable_ipv6", "driver_opts"),
        *(
            "ipv4_address",
            "ipv6_address",
            "link_local_ips",
            "priority",
            "gw_priority",
            "mac_address",
            "interface_name",
        ),
    ),
    NETWORK,
)
"""Of networks, and of a service's place in them."""
REMEDIES = {
    "content": "it is of one of the stores of apps; give the text as one of `configs`, with `content`",
    "is_directory": "it is of one of the stores of apps; leave it out",
    "exclude_from_hc": "it is of one of the stores of apps; leave it out",
    "models": "no models are run here",
    "provider": "only containers are run",
    "external_links": "an app's networks are its own: put both services into one file",
    "label_file": "write them as `labels`",
    "use_api_socket": "bind the engine's socket by its path, which has to be allowed",
}
"""Key that is refused -> what to do."""
