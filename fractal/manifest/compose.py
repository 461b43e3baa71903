"""A Compose file to an `AppSpec`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fractal.api import canonical
from fractal.api.app import AppSpec, HealthSpec, Limits, Mount, Port, ServiceSpec
from fractal.api.errors import InvalidInput
from fractal.manifest import rules
from fractal.manifest.deployment import Deployment, deployment
from fractal.manifest.document import Items, Node, Problems, Scalar, Table, read
from fractal.manifest.env_files import variables
from fractal.manifest.homeserver import (
    AppSection,
    ServiceSection,
    app_section,
    generated_secrets,
    service_section,
)
from fractal.manifest.mounts import mounts, ports
from fractal.manifest.values import Where

TOP_KEYS = frozenset({"name", "version", "services", "volumes", "networks", "x-homeserver"})
"""`version` is accepted and without effect; an app has one network of its own, `default`."""
OPTION_KEYS = frozenset(
    {
        "hostname",
        "init",
        "read_only",
        "tmpfs",
        "shm_size",
        "cap_add",
        "cap_drop",
        "dns",
        "expose",
        "labels",
        "logging",
        "mem_reservation",
        "platform",
        "privileged",
        "ulimits",
        "extra_hosts",
    }
)
"""Kept as they are for runtimes that honour them."""
IGNORED_KEYS = frozenset({"container_name", "networks", "pull_policy"})
"""Accepted and without effect: names, pulling and the one network (no other is accepted) are the system's own."""
SERVICE_KEYS = frozenset(
    {
        *(
            "image",
            "command",
            "entrypoint",
            "environment",
            "volumes",
            "ports",
            "depends_on",
            "healthcheck",
            "restart",
            "env_file",
            "build",
            "deploy",
            "network_mode",
        ),
        *(
            "stop_grace_period",
            "stop_signal",
            "working_dir",
            "user",
            "mem_limit",
            "cpus",
            "pids_limit",
            "x-homeserver",
        ),
        *OPTION_KEYS,
        *IGNORED_KEYS,
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
NETWORK_MODES = {"bridge": "", "default": "", "none": "none"}
"""An app has a bridge of its own; with `host` it would reach all that the device does."""
_IMAGE = re.compile(r"[a-z0-9][A-Za-z0-9._/:@+-]{0,400}")


def parse(text: str, source: str = "manifest", files: Mapping[str, str] | None = None) -> AppSpec:
    """The app that a manifest describes. Raises InvalidInput with every problem, one `SOURCE:LINE: key: message` per line.

    `files` are the texts of env files that it names (`env_files.named`). Where the text gives no `name`, the app is called after `source` (a file's name without its suffix).
    """
    problems = Problems(source)
    root = Where("", read(text, problems), problems)
    top = root.table(TOP_KEYS, extensions=True)
    secrets = _secrets(top.get("x-homeserver"))
    top = {name: replace(where, secrets=secrets) for name, where in top.items()}
    section = app_section(top.get("x-homeserver"))
    declared = _volumes(top.get("volumes"))
    _networks(top.get("networks"))
    tables = top["services"].table().values() if "services" in top else ()
    services = [_service(where, files or {}) for where in tables]
    if not services:
        problems.add(root.node.line, "services", "an app needs at least one service")
    problems.check()
    spec = AppSpec(
        name=_name(top.get("name"), source),
        services=tuple(_in_order(services, problems, top["services"].node)),
        volumes=_all_volumes(declared, services),
        web_service=section.web_service,
        web_port=section.web_port,
        architectures=section.architectures,
        generated_secrets=section.secrets,
        consistency=section.consistency,
        before_snapshot=section.before,
        after_snapshot=section.after,
    )
    _check(spec, problems, root.node)
    return spec


def describe(text: str, source: str = "manifest") -> Mapping[str, str]:
    """`name`, `title`, `summary` and `version` of a manifest, for catalogs. Raises InvalidInput."""
    spec = parse(text, source)
    problems = Problems(source)
    root = Where("", read(text, problems), problems)
    section: AppSection = app_section(root.table().get("x-homeserver"))
    return {"name": spec.name, "title": spec.name, **section.about}


def _secrets(where: Where | None) -> frozenset[str]:
    """Read ahead, as `${NAME}` may stand for one anywhere; what is wrong with them is told when their turn comes."""
    return frozenset(generated_secrets(where and replace(where, problems=Problems(""))))


def _name(where: Where | None, source: str) -> str:
    if where is not None:
        return where.text()
    stem = source.rpartition("/")[2].partition(".")[0]
    return stem if rules.APP.fullmatch(stem) else "app"


def _volumes(where: Where | None) -> tuple[str, ...]:
    found = []
    for name, item in where.table().items() if where is not None else ():
        item.table(frozenset())  # `{}` or nothing: drivers and external volumes are not ours to promise
        found.append(name)
    return tuple(found)


def _networks(where: Where | None) -> None:
    """Names only, and only the app's own network: to ignore another one would join what the file keeps apart."""
    if where is None:
        return
    if isinstance(where.node, Items):
        for item in where.items():
            item.choice(frozenset({"default"}))
        return
    for item in where.table(frozenset({"default"})).values():
        item.table(frozenset())


def _all_volumes(declared: tuple[str, ...], services: list[ServiceSpec]) -> tuple[str, ...]:
    used = [mount.volume for service in services for mount in service.mounts]
    return tuple(dict.fromkeys([*declared, *used]))


def _service(where: Where, files: Mapping[str, str]) -> ServiceSpec:
    name = where.key.partition(".")[2]
    table = where.table(SERVICE_KEYS, extensions=True)
    own = service_section(table.get("x-homeserver"))
    _networks(table.get("networks"))
    env = {**variables(table.get("env_file"), files), **_environment(table.get("environment"))}
    deploy = deployment(table.get("deploy"))
    _build(table)
    service = ServiceSpec(
        name=name,
        image=table["image"].name(_IMAGE, "an image's name") if "image" in table else "",
        argv=table["command"].argv() if "command" in table else (),
        entrypoint=table["entrypoint"].argv() if "entrypoint" in table else (),
        env=env,
        mounts=_all_mounts(mounts(table["volumes"]) if "volumes" in table else (), own),
        ports=_all_ports(ports(table["ports"]) if "ports" in table else (), own),
        depends_on=_depends(table.get("depends_on")),
        health=own.health or _healthcheck(table.get("healthcheck")),
        limits=_limits(table, deploy),
        stop_signal=_signal(table["stop_signal"].text()) if "stop_signal" in table else "SIGTERM",
        stop_grace=table["stop_grace_period"].seconds() if "stop_grace_period" in table else 10.0,
        restart=deploy.restart or (_restart(table["restart"]) if "restart" in table else "always"),
        working_dir=table["working_dir"].text() if "working_dir" in table else "",
        user=table["user"].text() if "user" in table else "",
        process=own.process,
        options=_options(table, deploy),
    )
    return replace(service, secrets=tuple(sorted({*own.secrets, *rules.secrets_used(service)})))


def _build(table: Mapping[str, Where]) -> None:
    """An image that has a name is looked for before it is built, by Compose's rules; here it is never built."""
    if "build" in table and "image" not in table:
        table["build"].wrong("images are not built here: build it elsewhere, and name it by `image`")
    if "pull_policy" in table and table["pull_policy"].loose_text() == "build":
        table["pull_policy"].wrong("images are not built here")


def _limits(table: Mapping[str, Where], deploy: Deployment) -> Limits:
    memory = table["mem_limit"].size() if "mem_limit" in table else deploy.memory
    cpus = table["cpus"].number() if "cpus" in table else deploy.cpus
    processes = table["pids_limit"].integer(0, 1 << 22) if "pids_limit" in table else deploy.processes
    for key, own, other in (
        ("mem_limit", memory, deploy.memory),
        ("cpus", cpus, deploy.cpus),
        ("pids_limit", processes, deploy.processes),
    ):
        if other and own != other:
            table[key].wrong("`deploy.resources.limits` says otherwise")
    return Limits(memory=memory, cpus=cpus, processes=processes)


def _all_mounts(given: tuple[Mount, ...], own: ServiceSection) -> tuple[Mount, ...]:
    mounted = {mount.volume for mount in given}
    return (*given, *(Mount(volume=name, target=f"/data/{name}") for name in own.data if name not in mounted))


def _all_ports(given: tuple[Port, ...], own: ServiceSection) -> tuple[Port, ...]:
    named = {port.name for port in given}
    return (*given, *(port for port in own.ports if port.name not in named))


def _environment(where: Where | None) -> dict[str, str]:
    if where is None:
        return {}
    found: dict[str, str] = {}
    if isinstance(where.node, Items):
        for item in where.items():
            name, equals, value = item.text().partition("=")
            if not equals:
                item.wrong(f"{name[:80]} has no value; an app sees nothing of the device's own environment")
            found[name] = value
        return found
    for name, item in where.table().items():
        if isinstance(item.node, Scalar) and item.node.value is None:
            item.wrong("has no value; an app sees nothing of the device's own environment")
        else:
            found[name] = item.loose_text()
    return found


def _depends(where: Where | None) -> dict[str, str]:
    if where is None:
        return {}
    if isinstance(where.node, Items):
        return {item.text(): "started" for item in where.items()}
    found = {}
    for name, item in where.table().items():
        table = item.table(frozenset({"condition", "restart", "required"}))
        found[name] = (
            table["condition"].choice(CONDITIONS) or "started" if "condition" in table else "started"
        )
    return found


def _healthcheck(where: Where | None) -> HealthSpec | None:
    if where is None:
        return None
    known = frozenset({"test", "interval", "timeout", "retries", "start_period", "start_interval", "disable"})
    table = where.table(known)
    if "disable" in table and table["disable"].flag():
        return None
    if "test" not in table:
        where.wrong("needs `test`")
        return None
    if isinstance(table["test"].node, Items):
        words = tuple(item.loose_text() for item in table["test"].items())
        kind, argv = (words[0], words[1:]) if words else ("", ())
        if kind == "NONE":
            return None
        if kind == "CMD-SHELL":
            argv = ("/bin/sh", "-c", " ".join(argv))
        elif kind != "CMD":
            table["test"].wrong("must begin with CMD, CMD-SHELL or NONE")
    else:
        argv = ("/bin/sh", "-c", table["test"].text())
    return HealthSpec(
        test=argv,
        interval=table["interval"].seconds() if "interval" in table else 30.0,
        timeout=table["timeout"].seconds() if "timeout" in table else 30.0,
        retries=table["retries"].integer(1, 1000) if "retries" in table else 3,
        start_period=table["start_period"].seconds() if "start_period" in table else 0.0,
    )


def _restart(where: Where) -> str:
    text = where.loose_text()
    if re.fullmatch(r"on-failure:\d{1,4}", text):
        return "on-failure"
    return where.choice(RESTARTS) or "always"


def _signal(text: str) -> str:
    return text if text.startswith("SIG") else f"SIG{text}"


def _options(table: Mapping[str, Where], deploy: Deployment) -> dict[str, str]:
    found = {key: _option(table[key]) for key in sorted(OPTION_KEYS & set(table))}
    if deploy.reserved:
        found["mem_reservation"] = str(deploy.reserved)
    if "network_mode" in table and table["network_mode"].choice(NETWORK_MODES):
        found["network_mode"] = '"none"'
        if "networks" in table:
            table["networks"].wrong("`network_mode: none` leaves no network")
    health = table["healthcheck"].node if "healthcheck" in table else None
    if isinstance(health, Table) and _switched_off(health):
        found["healthcheck.disable"] = "true"  # not the same as saying nothing: an image may bring a check
    return found


def _switched_off(health: Table) -> bool:
    _, disable = health.entries.get("disable", (0, None))
    _, test = health.entries.get("test", (0, None))
    first = test.items[0] if isinstance(test, Items) and test.items else None
    return (isinstance(disable, Scalar) and disable.value is True) or (
        isinstance(first, Scalar) and first.text == "NONE"
    )


def _option(where: Where) -> str:
    """A value kept for the runtime, as canonical JSON text."""
    try:
        return canonical.encode({"": _value(where)})[4:-1].decode()
    except InvalidInput as error:
        where.wrong(str(error))
        return "null"


def _value(where: Where) -> Any:
    node = where.node
    if isinstance(node, Table):
        return {name: _value(item) for name, item in where.table().items()}
    if isinstance(node, Items):
        return [_value(item) for item in where.items()]
    return where.text() if isinstance(node.value, str | float) else node.value


def _in_order(services: list[ServiceSpec], problems: Problems, node: Node) -> list[ServiceSpec]:
    """Dependencies first, otherwise as written."""
    left, done = {s.name: s for s in services}, dict[str, ServiceSpec]()
    while left:
        ready = [s for s in left.values() if not set(s.depends_on) & set(left)]
        if not ready:
            problems.add(node.line, "services", f"{', '.join(sorted(left))}: need each other in a circle")
            problems.check()
        for service in ready:
            done[service.name] = left.pop(service.name)
    return list(done.values())


def _check(spec: AppSpec, problems: Problems, node: Node) -> None:
    for key, message in rules.problems(spec):
        problems.add(_line(node, key), key, message)
    problems.check()


def _line(node: Node, key: str) -> int:
    """The line of a dotted key, or of the nearest key above it that exists."""
    line = node.line
    while key and isinstance(node, Table):
        # Names may hold dots themselves, so the longest one that fits is taken.
        fitting = [name for name in node.entries if key == name or key.startswith(f"{name}.")]
        if not fitting:
            break
        name = max(fitting, key=len)
        line, node = node.entries[name]
        key = key[len(name) + 1 :]
    return line
