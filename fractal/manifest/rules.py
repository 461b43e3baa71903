"""What every specification must satisfy, wherever it comes from: a manifest, or another device by the log. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from fractal.api.app import AppSpec, Command, Mount, ServiceSpec
from fractal.manifest import secret_forms, shares

SERVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
VOLUME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
PORT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
SECRET = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
VARIABLE = re.compile(r"[!-<>-~]{1,200}")
APP = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _.-]{0,62}")
ARCHITECTURE = re.compile(r"[a-z0-9_]{1,20}")
ALLOWED = re.compile(r"[a-z][a-z-]{0,30}(:[^\0\r\n]{1,500})?")
"""What an app may have of a device."""
SECRET_USE = re.compile(r"\{secret\.([A-Za-z0-9_]+)\}")
HTTP_PATH = re.compile(r"/[!-~]{0,500}")
CONDITIONS = frozenset({"started", "healthy", "completed"})
RESTARTS = frozenset({"always", "on-failure", "no"})
CONSISTENCY = frozenset({"crash", "pause", "hook"})
MAX_SERVICES = 64
MAX_PORTS = 2000
"""Of a service."""
MAX_HOOKS = 8
"""Before a snapshot, and after it: what they may take is bounded by it. Also after a start, and before a stop."""
MAX_HOOK_TIMEOUT = 60.0
"""Seconds at most."""

Found = Iterator[tuple[str, str]]
"""(dotted key, what is wrong)."""


def problems(spec: AppSpec, *, whole: bool = True) -> Found:
    """Everything that is wrong with a specification; if it is not `whole`, what is still to be given is not looked at."""
    if not APP.fullmatch(spec.name):
        yield "name", f"{spec.name[:80]!r} cannot be an app's name"
    names = [service.name for service in spec.services]
    if not names or len(names) > MAX_SERVICES:
        yield "services", f"expected 1 to {MAX_SERVICES}, got {len(names)}"
    if len(set(names)) != len(names):
        yield "services", "two services have the same name"
    yield from _sections(spec, names)
    yield from _given(spec)
    yield from _web(spec)
    earlier: set[str] = set()
    for item in spec.services:
        yield from _service(item, spec, earlier, whole=whole)
        earlier.add(item.name)


def _given(spec: AppSpec) -> Found:
    for name in (*spec.generated_secrets, *spec.given_secrets):
        if not SECRET.fullmatch(name):
            yield "x-homeserver.secrets", f"{name[:80]!r} cannot be a secret's name"
    for name, form in spec.secret_forms.items():
        if name not in spec.generated_secrets or not secret_forms.known(form):
            yield "x-homeserver.fields", f"{name[:80]!r} cannot be made as {form[:40]!r}"
    for name in spec.allowed:
        if not ALLOWED.fullmatch(name):
            yield "allowed", f"{name[:80]!r} cannot be allowed"


def _sections(spec: AppSpec, names: list[str]) -> Found:
    for volume in spec.volumes:
        if not VOLUME.fullmatch(volume):
            yield "volumes", f"{volume[:80]!r} cannot be a folder of the app"
    if len(set(spec.volumes)) != len(spec.volumes):
        yield "volumes", "two volumes have the same name"
    for volume in spec.ignored:
        if volume not in spec.volumes:
            yield "x-homeserver.data.ignore", f"{volume[:80]!r} is no volume of this app"
    for name in spec.architectures:
        if not ARCHITECTURE.fullmatch(name):
            yield (
                "x-homeserver.architectures",
                f"{name[:80]!r} is not a machine name such as x86_64 or aarch64",
            )
    if spec.consistency not in CONSISTENCY:
        yield (
            "x-homeserver.consistency",
            f"{spec.consistency[:40]!r} is not one of {', '.join(sorted(CONSISTENCY))}",
        )
    yield from _hooks(spec, names)


_IN_PS = "a secret would be seen in `ps`: it is in the service's own `environment`, for `sh -c`"


def _hooks(spec: AppSpec, names: list[str]) -> Found:
    for service, argv in (*spec.before_snapshot, *spec.after_snapshot):
        if service not in names or not argv or any("\0" in word for word in argv):
            yield "x-homeserver.hooks", f"{service[:80]!r} is no service of this app, or has nothing to run"
        if any(SECRET_USE.search(word) for word in argv):
            yield "x-homeserver.hooks", _IN_PS
    if max(len(spec.before_snapshot), len(spec.after_snapshot)) > MAX_HOOKS:
        yield "x-homeserver.hooks", f"more than {MAX_HOOKS} of a kind"
    if not 0 < spec.hook_timeout <= MAX_HOOK_TIMEOUT:
        yield "x-homeserver.hooks.timeout", f"expected at most {MAX_HOOK_TIMEOUT:g} s, and more than none"


def _web(spec: AppSpec) -> Found:
    if not spec.web_service and not spec.web_port:
        return
    ports = {s.name: {p.name for p in s.ports} for s in spec.services}
    if spec.web_port not in ports.get(spec.web_service, set()):
        yield (
            "x-homeserver.web",
            f"service {spec.web_service[:80]!r} has no port named {spec.web_port[:80]!r}",
        )


def _service(service: ServiceSpec, spec: AppSpec, earlier: set[str], *, whole: bool) -> Found:
    key = f"services.{service.name[:80]}"
    if not SERVICE.fullmatch(service.name) or ".." in service.name:
        yield key, "cannot be a service's name"
    if whole and not service.image and service.process is None:
        yield key, "has neither `image` nor `x-homeserver.process`"
    for needed, condition in service.depends_on.items():
        if needed not in earlier:
            yield f"{key}.depends_on", f"{needed[:80]!r} is no other service, or needs this one itself"
        if condition not in CONDITIONS:
            yield f"{key}.depends_on", f"{condition[:40]!r} is not one of {', '.join(sorted(CONDITIONS))}"
    yield from _mounts_and_ports(service, spec, key, whole=whole)
    if service.restart not in RESTARTS:
        yield f"{key}.restart", f"{service.restart[:40]!r} is not one of {', '.join(sorted(RESTARTS))}"
    for name in service.env:
        if not VARIABLE.fullmatch(name):
            yield f"{key}.environment", f"{name[:80]!r} cannot be a variable's name"
    for name in service.secrets:
        if name not in (*spec.generated_secrets, *spec.given_secrets):
            yield f"{key}.secrets", f"{name[:80]!r} is not in x-homeserver.secrets"
    yield from _health(service, key)
    yield from _process(service, key)
    yield from _commands(service.post_start, f"{key}.post_start")
    yield from _commands(service.pre_stop, f"{key}.pre_stop")


def _mount(mount: Mount, spec: AppSpec, *, whole: bool) -> Iterator[str]:
    if [bool(mount.host), bool(mount.volume), bool(mount.engine)].count(True) != 1 or (
        mount.host and not _absolute(mount.host)
    ):
        yield f"{mount.host[:80]!r} is not an absolute path on the device"
    elif mount.engine and (reason := shares.mounting(mount.engine)):
        yield reason
    elif mount.needs and whole and mount.needs not in spec.allowed:
        yield f"{mount.needs.partition(':')[2][:200]!r} is not allowed"
    if mount.shared and not mount.host:
        yield f"{mount.volume[:80]!r} cannot be shared with the device"
    if mount.volume and mount.volume not in spec.volumes:
        yield f"{mount.volume[:80]!r} is no volume of this app"
    if not _absolute(mount.target):
        yield f"{mount.target[:80]!r} is not an absolute path inside the service"


def _mounts_and_ports(service: ServiceSpec, spec: AppSpec, key: str, *, whole: bool) -> Found:
    for mount in service.mounts:
        for reason in _mount(mount, spec, whole=whole):
            yield f"{key}.volumes", reason
    for target in service.files:
        if not _absolute(target):
            yield f"{key}.configs", f"{target[:80]!r} is not an absolute path inside the service"
    names = Counter(port.name for port in service.ports)
    if len(service.ports) > MAX_PORTS:
        yield f"{key}.ports", f"more than {MAX_PORTS}"
    for port in service.ports:
        good = PORT.fullmatch(port.name) and 0 <= port.container <= 65535 and port.protocol in ("tcp", "udp")
        if not good or names[port.name] > 1:
            yield f"{key}.ports", f"{port.name[:80]!r}: not a port, or named twice"


def _absolute(path: str) -> bool:
    return path.startswith("/") and ".." not in path.split("/") and "\0" not in path


def _health(service: ServiceSpec, key: str) -> Found:
    health = service.health
    if health is None:
        return
    if health.http and not HTTP_PATH.fullmatch(health.http):
        yield f"{key}.health.http", "expected a path such as /health"
    if health.port and health.port not in {p.name for p in service.ports}:
        yield f"{key}.health.port", f"{health.port[:80]!r} is no port of this service"
    if not health.test and not service.ports:
        yield f"{key}.health", "needs a port or a command"
    if not (
        0 < health.interval <= 86400 and 0 < health.timeout <= 3600 and 0 <= health.start_period <= 86400
    ):
        yield f"{key}.health", "a time is out of bounds"
    if not 1 <= health.retries <= 1000:
        yield f"{key}.health.retries", "expected 1 to 1000"


def _process(service: ServiceSpec, key: str) -> Found:
    if not 0 <= service.stop_grace <= 3600:
        yield f"{key}.stop_grace_period", "expected at most an hour"
    if service.process is None:
        return
    if not service.process.argv or any("\0" in word for word in service.process.argv):
        yield f"{key}.x-homeserver.process.argv", "is empty, or holds NUL"
    yield from _files(service.process.files, f"{key}.x-homeserver.process.files")


def _commands(commands: Sequence[Command], key: str) -> Found:
    if len(commands) > MAX_HOOKS:
        yield key, f"more than {MAX_HOOKS}"
    for command in commands:
        words = [*command.argv, command.user, command.working_dir, *command.env.values()]
        if not command.argv or any("\0" in word for word in words):
            yield key, "has nothing to run, or holds NUL"
        if any(SECRET_USE.search(word) for word in words):
            yield key, _IN_PS
        if any(not VARIABLE.fullmatch(name) for name in command.env):
            yield f"{key}.environment", "holds what cannot be a variable's name"


def _files(files: Mapping[str, str], key: str) -> Found:
    for name in files:
        if not FILE.fullmatch(name):
            yield key, f"{name[:80]!r} cannot be a file's name: no slash, no leading dot"


def secrets_used(service: ServiceSpec) -> set[str]:
    """Names in `{secret.NAME}` in all that is given to a service."""
    texts = [*service.argv, *service.entrypoint, *service.env.values(), *service.files.values()]
    if service.health is not None:
        texts += service.health.test
    if service.process is not None:
        texts += [*service.process.argv, *service.process.files.values()]
    return {name for text in texts for name in SECRET_USE.findall(text)}
