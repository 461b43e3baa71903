"""One service of a Compose file to a `ServiceSpec`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fractal.api import canonical
from fractal.api.app import HealthSpec, Limits, Mount, Port, ServiceSpec
from fractal.api.building import BUILT
from fractal.api.errors import InvalidInput
from fractal.manifest import building, keys, networks, routed, rules
from fractal.manifest.deployment import Deployment, deployment
from fractal.manifest.document import Items, Scalar, Table
from fractal.manifest.env_files import variables
from fractal.manifest.homeserver import ServiceSection, service_section
from fractal.manifest.lifecycle import commands
from fractal.manifest.mounts import mounted
from fractal.manifest.option_forms import formed, hosts, labels, limits, several
from fractal.manifest.ports import ports
from fractal.manifest.reaching import gpus, reach
from fractal.manifest.values import Where

SERVICE_KEYS = frozenset(
    {
        *("image", "command", "entrypoint", "environment", "volumes", "ports", "depends_on", "healthcheck"),
        *(
            "restart",
            "env_file",
            "build",
            "deploy",
            "network_mode",
            "networks",
            "links",
            "profiles",
            "extends",
        ),
        *(
            "stop_grace_period",
            "stop_signal",
            "working_dir",
            "user",
            "mem_limit",
            "cpus",
            "pids_limit",
            "scale",
        ),
        *("configs", "secrets", "pull_policy", "volumes_from", "domainname", "gpus", "x-homeserver"),
        *("runtime", "post_start", "pre_stop", "cpu_quota", "cpu_period"),
        *keys.OPTION_KEYS,
        *keys.IDLE,
    }
)
RESTARTS = {
    "always": "always",
    "unless-stopped": "always",
    "on-failure": "on-failure",
    "no": "no",
    "false": "no",
}
CONDITIONS = {
    "service_started": "started",
    "service_healthy": "healthy",
    "service_completed_successfully": "completed",
}
LOG_DRIVERS = frozenset({"json-file", "local"})
LOG_OPTIONS = frozenset({"max-size", "max-file"})
MAX_LOG_BYTES, MAX_LOG_FILES = 64 << 20, 10
"""What runtimes keep of a service's logs at most: `max-size` and `max-file`."""
MAY_BE_EMPTY = frozenset({"dns", "dns_search", "hostname", "platform"})
"""Options that ask for nothing then, as to the engines."""
NORMAL: Mapping[str, Callable[[Where], Any]] = {
    "extra_hosts": lambda where: [text for _, text in hosts(where)],
    "labels": labels,
    "ulimits": limits,
    **dict.fromkeys(("dns", "dns_opt", "dns_search", "group_add"), several),
}
"""Options that Compose takes in several forms -> one of them."""
_IMAGE = re.compile(r"[a-z0-9][A-Za-z0-9._/:@+-]{0,400}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Around:
    """What a service takes from the rest of the file."""

    names: frozenset[str] = frozenset()
    """Services that run."""
    absent: frozenset[str] = frozenset()
    """Services whose profiles are not chosen."""
    networks: Mapping[str, bool] = field(default_factory=dict)
    """Whether each has no way out."""
    called: Mapping[str, str] = field(default_factory=dict)
    """container_name -> service."""
    devices: Mapping[str, str] = field(default_factory=dict)
    """Volumes that are folders of the device."""
    engine: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Volumes that the engine mounts."""
    configs: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)
    """Their texts, by name."""


def service(where: Where, around: Around) -> ServiceSpec:
    """Read a service."""
    name = where.key.partition(".")[2]
    table = where.table(SERVICE_KEYS, extensions=True)
    for key in keys.IDLE.keys() & table.keys():
        table[key].idle(keys.IDLE[key])
    if "container_name" in table and "network_mode" not in table:
        called = table["container_name"]
        if isinstance(called.node, Scalar) and "$" not in called.node.text:
            where.problems.aliases.setdefault(name, []).append(
                (called.node.line, called.key, called.node.text)
            )
    own = service_section(table.get("x-homeserver"))
    deploy = deployment(table.get("deploy"))
    _fixed(table)
    volumes = mounted(table["volumes"], name, around.devices, around.engine) if "volumes" in table else None
    env = {**variables(table.get("env_file"), where.given.files), **_environment(table.get("environment"))}
    read = ServiceSpec(
        name=name,
        image=_image(name, where, table, own),
        argv=table["command"].argv() if _filled(table, "command") else (),
        entrypoint=table["entrypoint"].argv() if _filled(table, "entrypoint") else (),
        env=env,
        mounts=_all_mounts(tuple(volumes.mounts) if volumes is not None else (), own),
        files={**(volumes.files if volumes is not None else {}), **_files(table, around)},
        ports=_all_ports(ports(table["ports"]) if "ports" in table else (), own),
        depends_on={
            **_links(table.get("links"), around),
            **networks.shared_with(table, around.called),
            **_depends(table.get("depends_on"), around),
        },
        health=own.health or _healthcheck(table.get("healthcheck")),
        limits=_limits(table, deploy),
        stop_signal=_signal(table["stop_signal"].text()) if "stop_signal" in table else "SIGTERM",
        stop_grace=table["stop_grace_period"].seconds() if "stop_grace_period" in table else 10.0,
        restart=deploy.restart or (_restart(table["restart"]) if _filled(table, "restart") else "always"),
        working_dir=table["working_dir"].text() if "working_dir" in table else "",
        user=table["user"].text() if "user" in table else "",
        process=own.process,
        post_start=commands(table.get("post_start")),
        pre_stop=commands(table.get("pre_stop")),
        options=_options(table, deploy, around, volumes.tmpfs if volumes is not None else []),
    )
    used = rules.secrets_used(read)
    return replace(read, secrets=tuple(sorted({*own.secrets, *used})))


def _filled(table: Mapping[str, Where], key: str) -> bool:
    """Whether a key is there and not null."""
    node = table[key].node if key in table else None
    return node is not None and not (isinstance(node, Scalar) and node.value is None)


def _image(name: str, where: Where, table: Mapping[str, Where], own: ServiceSection) -> str:
    """The image's name: as given, as written, or one that stands for what is to be built, by Compose's rules: an image that
    has a name is looked for before it is built, unless `pull_policy` says otherwise."""
    given = where.given.images.get(name, "")
    how = building.policy(table)
    if "pull_policy" in table:
        table["pull_policy"].idle("an image is pulled once, and every device of an app runs the same")
    image = table["image"].name(_IMAGE, "an image's name") if "image" in table else ""
    if given and (given.startswith(f"{BUILT}/") or ("build" in table and (not image or how == "build"))):
        return given
    if "build" in table and not (image and how == "pull"):
        platform = table["platform"].text() if "platform" in table else ""
        build, reason = building.reading(table["build"], name, image, platform)
        if build is not None and not reason:
            called, found = image or building.unbuilt(name), (build, bool(image) and how != "build")
            if where.problems.builds.setdefault(called, found) != found:
                table["build"].wrong(f"another service builds {called} too, and not alike")
            elif any(b.name == build.name for c, (b, _) in where.problems.builds.items() if c != called):
                # Contexts travel by this name: one of the two would be built of the other's.
                table["build"].wrong(
                    f"{build.name!r} is a service and an image that are both built: rename one"
                )
            return where.given.built.get(called, called)
        if not reason:
            return ""
        if not image or how == "build":
            table["build"].need(f"--image {name}=IMAGE", f"{reason}; build it elsewhere and name it")
            return ""
        table["build"].idle(f"`image` is taken, as it cannot be built: {reason}")
    elif "build" not in table and "image" not in table and own.process is None and not _awaits(table):
        where.wrong(
            "has neither `image` nor `build` nor `x-homeserver.process`: is the file a part of another one?"
        )
    return where.given.built.get(image, image)


def _awaits(table: Mapping[str, Where]) -> bool:
    """Whether it extends a service of a file that is not there yet."""
    needs = table["extends"].problems.needs.values() if "extends" in table else ()
    return any(need.key == f"{table['extends'].key}.file" for need in needs)


def _fixed(table: Mapping[str, Where]) -> None:
    """Keys of which only what is so anyway is taken."""
    if "scale" in table and table["scale"].text() not in ("0", "1"):
        table["scale"].idle("a service of an app runs once")
    if "runtime" in table and table["runtime"].text() not in (
        "runc",
        "crun",
        "io.containerd.runc.v2",
        "nvidia",
    ):
        table["runtime"].wrong("not supported: the engine's own runtime is taken")


def _all_mounts(given: tuple[Mount, ...], own: ServiceSection) -> tuple[Mount, ...]:
    have = {mount.volume for mount in given}
    return (*given, *(Mount(volume=name, target=f"/data/{name}") for name in own.data if name not in have))


def _all_ports(given: tuple[Port, ...], own: ServiceSection) -> tuple[Port, ...]:
    named = {port.name for port in given}
    return (*given, *(port for port in own.ports if port.name not in named))


def _environment(where: Where | None) -> dict[str, str]:
    """A name without value is left out unless a value is given: an app sees nothing of the device's own environment."""
    if where is None:
        return {}
    found: dict[str, str] = {}
    if isinstance(where.node, Items):
        for item in where.items():
            name, equals, value = item.sealable().partition("=")
            _variable(item, name, value if equals else None, found)
        return found
    for name, item in where.table().items():
        empty = isinstance(item.node, Scalar) and item.node.value is None
        _variable(item, name, None if empty else item.sealable(), found)
    return found


def _variable(where: Where, name: str, value: str | None, found: dict[str, str]) -> None:
    port = routed.entrance(name)
    if port is not None and (value is None or value.startswith("/")):
        where.problems.entrances.setdefault(where.key.split(".")[1], port)
        value = (where.value_of(name) or "") + (value or "").rstrip("/") if where.known(name) else None
    elif value is None:
        value = where.value_of(name)
    if value is not None:
        found[name] = value


def _files(table: Mapping[str, Where], around: Around) -> dict[str, str]:
    """Path inside -> text, of `configs` and `secrets`."""
    found: dict[str, str] = {}
    for key, texts, folder in (
        ("configs", around.configs, "/"),
        ("secrets", around.secrets, "/run/secrets/"),
    ):
        for item in table[key].items() if key in table else ():
            entries = (
                item.table(frozenset({"source", "target", "uid", "gid", "mode"}))
                if isinstance(item.node, Table)
                else {"source": item}
            )
            for owner in ("uid", "gid", "mode"):
                if owner in entries:
                    entries[owner].idle("it is readable by every user inside, and writable by none")
            source = entries["source"].text() if "source" in entries else ""
            if source not in texts:
                item.wrong(f"{source[:80]!r} is not among the file's `{key}`")
                continue
            target = entries["target"].text() if "target" in entries else source
            found[target if target.startswith("/") else folder + target] = texts[source]
    return found


def _depends(where: Where | None, around: Around) -> dict[str, str]:
    if where is None:
        return {}
    if isinstance(where.node, Items):
        return {item.text(): "started" for item in where.items()}
    found = {}
    for name, item in where.table().items():
        table = item.table(frozenset({"condition", "restart", "required"}))
        if "restart" in table:
            table["restart"].idle("services are restarted each for itself")
        if "required" in table and not table["required"].flag() and name not in around.names:
            continue
        found[name] = (
            table["condition"].choice(CONDITIONS) or "started" if "condition" in table else "started"
        )
    return found


def _links(where: Where | None, around: Around) -> dict[str, str]:
    """Who is linked is started first, as in Compose, and found by its name anyway."""
    found = {}
    for item in where.items() if where is not None else ():
        name, _, alias = item.text().partition(":")
        if name in around.absent:
            continue
        if alias:
            item.problems.aliases.setdefault(name, []).append((item.node.line, item.key, alias))
        found[name] = "started"
    return found


def _healthcheck(where: Where | None) -> HealthSpec | None:
    if where is None:
        return None
    known = frozenset({"test", "interval", "timeout", "retries", "start_period", "start_interval", "disable"})
    table = where.table(known)
    if "start_interval" in table:
        table["start_interval"].idle("until the first good check the system looks every second")
    if "disable" in table and table["disable"].flag():
        return None
    if not _filled(table, "test"):
        for key, item in table.items():
            if key != "disable":
                item.idle("without `test` the image's own check is taken as it is")
        return None
    if isinstance(table["test"].node, Items):
        words = tuple(item.word() for item in table["test"].items())
        kind, argv = (words[0], words[1:]) if words else ("", ())
        if kind == "NONE":
            return None
        if kind == "CMD-SHELL":
            argv = ("/bin/sh", "-c", " ".join(argv))
        elif kind != "CMD":
            table["test"].wrong("must begin with CMD, CMD-SHELL or NONE")
    else:
        argv = ("/bin/sh", "-c", table["test"].word())
    return HealthSpec(
        test=argv,
        interval=(table["interval"].seconds() if "interval" in table else 0.0) or 30.0,
        timeout=(table["timeout"].seconds() if "timeout" in table else 0.0) or 30.0,
        retries=(table["retries"].integer(0, 1000) if "retries" in table else 0) or 3,
        start_period=table["start_period"].seconds() if "start_period" in table else 0.0,
    )


def _limits(table: Mapping[str, Where], deploy: Deployment) -> Limits:
    memory = _memory(table["mem_limit"]) if "mem_limit" in table else deploy.memory
    cpus = table["cpus"].number() if "cpus" in table else _processors(table) or deploy.cpus
    processes = (
        max(0, table["pids_limit"].integer(-1, 1 << 22)) if "pids_limit" in table else deploy.processes
    )
    for key in ("cpu_quota", "cpu_period"):
        if key in table and "cpus" in table:
            table[key].wrong("and `cpus`: only one of them can be taken")
    for key, own, other in (
        ("mem_limit", memory, deploy.memory),
        ("cpus" if "cpus" in table else "cpu_quota", cpus, deploy.cpus),
        ("pids_limit", processes, deploy.processes),
    ):
        if other and own != other:
            table[key].wrong("`deploy.resources.limits` says otherwise")
    _swap(table, memory)
    return Limits(memory=memory, cpus=cpus, processes=processes)


def _memory(where: Where) -> int:
    return 0 if where.loose_text() == "-1" else where.size()


def _processors(table: Mapping[str, Where]) -> float:
    """`cpu_quota` of every `cpu_period`, both in microseconds, as a number of processors; 0 for no limit."""
    quota = table["cpu_quota"].integer(-1, 1 << 40) if "cpu_quota" in table else 0
    period = table["cpu_period"].integer(1_000, 1_000_000) if "cpu_period" in table else 100_000
    return max(0, quota) / period


def _swap(table: Mapping[str, Where], memory: int) -> None:
    """Engines take a limit of memory and swap together only beside, and not below, one of memory."""
    if not _filled(table, "memswap_limit") or table["memswap_limit"].text() in ("-1", "0"):
        return
    swap = table["memswap_limit"].size()
    if 0 < swap < memory:
        table["memswap_limit"].wrong("is of memory and swap together: it cannot be below `mem_limit`")
    elif swap and not memory:
        table["memswap_limit"].wrong("needs `mem_limit`")


def _restart(where: Where) -> str:
    if re.fullmatch(r"on-failure:\d{1,4}", where.loose_text()):
        where.idle("how often is the system's own: it waits longer each time")
        return "on-failure"
    if not where.loose_text():
        return "no"
    return where.choice(RESTARTS) or "always"


def _signal(text: str) -> str:
    text = text.upper()
    return text if text.startswith("SIG") or not text or text.isdecimal() else f"SIG{text}"


def _options(
    table: Mapping[str, Where], deploy: Deployment, around: Around, tmpfs: list[str]
) -> dict[str, str]:
    found = {
        key: _option(table[key], key) for key in sorted(keys.OPTION_KEYS & set(table)) if _filled(table, key)
    }
    found = {key: text for key, text in found.items() if key not in MAY_BE_EMPTY or text != '""'}
    if "logging" in found:
        del found["logging"]
        found |= _logging(table["logging"])
    if deploy.reserved:
        found["mem_reservation"] = str(deploy.reserved)
    if tmpfs:
        own = _value(table["tmpfs"]) if "tmpfs" in table else []
        found["tmpfs"] = _text([*(own if isinstance(own, list) else [own]), *tmpfs])
    if "domainname" in table and (domain := table["domainname"].text()):
        host = table["hostname"].text() if _filled(table, "hostname") else ""
        found["hostname"] = _text(f"{host or table['domainname'].key.split('.')[1]}.{domain}")
    networks.read(table, around.networks, around.names, found, around.called)
    if found.get("oom_score_adj", "").lstrip('"').startswith("-"):
        table["oom_score_adj"].idle("below 0 others would be ended for it")
        del found["oom_score_adj"]
    if "healthcheck" in table and _switched_off(table["healthcheck"]):
        found["healthcheck.disable"] = "true"  # not the same as saying nothing: an image may bring a check
    if "tty" in table and table["tty"].flag():
        found["stdin_open"] = "true"
    reach(table, found)
    if text := gpus(table, deploy.devices):
        found["gpus"] = text
    return found


def _logging(where: Where) -> dict[str, str]:
    """What bounds a log is passed on; where to send it is not the app's to say."""
    table = where.table(frozenset({"driver", "options"}))
    reason = "logs are kept on the device, for `homeserver app logs`"
    driver = "" if "driver" not in table or table["driver"].incomplete() else table["driver"].text()
    if driver and driver not in LOG_DRIVERS:
        where.idle(reason)
        return {}
    kept = {}
    for key, item in table["options"].table().items() if "options" in table else ():
        if key not in LOG_OPTIONS:
            item.idle(reason)
        elif not item.incomplete():
            kept[key] = _log_bound(item, key)
    return {"logging": _text({"options": kept})} if kept else {}


def _log_bound(where: Where, key: str) -> str:
    said = where.text()
    most = MAX_LOG_FILES if key == "max-file" else MAX_LOG_BYTES
    if said != "-1" and (where.integer(1, 1 << 16) if key == "max-file" else where.size()) <= most:
        return said
    where.idle(f"of a service's logs at most {MAX_LOG_FILES} files of {MAX_LOG_BYTES >> 20} MiB are kept")
    return str(most)


def _switched_off(health: Where) -> bool:
    table = health.table()
    if "disable" in table and table["disable"].flag():
        return True
    test = table["test"].node if "test" in table else None
    first = test.items[0] if isinstance(test, Items) and test.items else None
    return isinstance(first, Scalar) and first.text == "NONE"


def _option(where: Where, key: str) -> str:
    """A value kept for the runtime, as canonical JSON text."""
    if key in keys.FLAG_OPTIONS:
        return "true" if where.flag() else "false"
    formed(where, key)
    try:
        if key in NORMAL and not where.problems.lines:
            return _text(NORMAL[key](where))
        return _text(_value(where))
    except InvalidInput as error:
        where.wrong(str(error))
        return "null"


def _text(value: Any) -> str:
    return canonical.encode({"": value})[4:-1].decode()


def _value(where: Where) -> Any:
    node = where.node
    if isinstance(node, Table):
        return {name: _value(item) for name, item in where.table().items()}
    if isinstance(node, Items):
        return [_value(item) for item in where.items()]
    return where.text() if isinstance(node.value, str | float) else node.value
