"""What an engine is asked to make, as plain values; and what it is asked to make for a service. Pure."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fractal.api.app import AppRun, HealthSpec, Limits, ServiceSpec
from fractal.api.errors import BackendError
from fractal_containers.cgroup import RunCgroup
from fractal_containers.config import EngineConfig
from fractal_containers.labels import container_name, service_labels
from fractal_containers.options import Options, Ulimit, settings

SECRETS = "/run/secrets"
SECRET_USE = re.compile(r"\{secret\.([A-Za-z0-9_]+)\}")


@dataclass(frozen=True, slots=True)
class Bind:
    """A folder of the device inside a container."""

    source: Path
    target: str
    read_only: bool = False
    shared: bool = False
    """Whether what is mounted below it inside is seen outside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attached:
    """A volume of the engine's inside a container."""

    name: str
    target: str
    read_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A container to make.

    Whatever it asks for, an engine adds: `no-new-privileges`, no restarts by the engine, every published port on
    127.0.0.1 at a number of the engine's choice, and `log_files` of `log_bytes` as the bound of its log.
    """

    name: str
    image: str
    """Digest of a local image."""
    labels: Mapping[str, str]
    argv: tuple[str, ...] = ()
    """Empty: the image's."""
    entrypoint: tuple[str, ...] = ()
    """Empty: the image's."""
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    user: str = ""
    working_dir: str = ""
    stop_signal: str = ""
    """Empty: the image's, else SIGTERM."""
    health: HealthSpec | None = None
    """A command of the app's; None: the image's own check, unless `options.no_health`."""
    networks: tuple[str, ...] = ()
    """Names of the networks that it is in, the one with its way out first; none if `options` say so, or it `joins`."""
    joins: str = ""
    """Identity of the container whose network it has."""
    alias: str
    """Name by which the others in its networks find it."""
    cgroup_parent: str
    binds: tuple[Bind, ...] = ()
    attached: tuple[Attached, ...] = ()
    ports: tuple[tuple[int, str], ...] = ()
    """(number inside, `tcp` or `udp`) to publish."""
    filter_file: Path | None = None
    """Where `options.filtered` is, for engines that read it themselves."""
    limits: Limits = field(default_factory=Limits)
    ulimits: tuple[Ulimit, ...] = ()
    log_bytes: int
    log_files: int = 2
    options: Options = field(default_factory=Options)

    @property
    def exposed(self) -> tuple[tuple[int, str], ...]:
        """Every port that it says it listens on."""
        if self.joins:
            return ()
        return tuple(dict.fromkeys([*self.ports, *self.options.expose]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Filling:
    """A volume of the engine's to make and fill."""

    name: str
    image: str
    target: str
    """The place in the image whose content it is to hold."""
    labels: Mapping[str, str]
    cgroup_parent: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a run's containers are made."""

    device: str
    boot: str
    cgroup: RunCgroup
    config: EngineConfig


def wanted(
    place: Place,
    run: AppRun,
    service: ServiceSpec,
    order: int,
    image: str,
    files: Mapping[str, Path],
    networks: Sequence[str],
    joins: str = "",
    attached: Sequence[Attached] = (),
    filter_file: Path | None = None,
) -> Wanted:
    """The container of a service. `files` of ours are bound by their paths inside. Raises BackendError, ValueError."""
    service = _visible(run, service)
    options = settings(service.options, frozenset(place.config.capabilities))
    binds = [
        Bind(Path(m.host) if m.host else run.folder(m.volume), m.target, m.read_only, m.shared)
        for m in service.mounts
        if not m.engine
    ]
    binds += [Bind(path, target, read_only=True) for target, path in files.items()]
    health = service.health
    watched_from_outside = health is not None and not health.test
    if watched_from_outside:
        options = options.without_health()
    return Wanted(
        name=container_name(place.device, run, service.name),
        image=image,
        labels={**options.labels, **service_labels(place.device, run, service, order, place.boot)},
        argv=service.argv,
        entrypoint=service.entrypoint,
        env=environment(run, service),
        user=service.user,
        working_dir=service.working_dir,
        # An image may name the signal it wants; SIGTERM is only what we say when nobody says anything.
        stop_signal="" if service.stop_signal == "SIGTERM" else service.stop_signal,
        health=None if watched_from_outside else health,
        networks=tuple(networks),
        joins=joins,
        alias=service.name,
        cgroup_parent=place.cgroup.parent,
        binds=tuple(binds),
        attached=tuple(attached),
        filter_file=filter_file,
        ports=()
        if options.host_network or options.shares_with
        else tuple(dict.fromkeys((port.container, port.protocol) for port in service.ports)),
        limits=service.limits,
        ulimits=_ulimits(service, options),
        log_bytes=options.log_bytes or place.config.log_bytes,
        log_files=options.log_files or 2,
        options=options,
    )


def _ulimits(service: ServiceSpec, options: Options) -> tuple[Ulimit, ...]:
    files = service.limits.files
    if files and not any(limit.name == "nofile" for limit in options.ulimits):
        return (*options.ulimits, Ulimit("nofile", files, files))
    return options.ulimits


def environment(run: AppRun, service: ServiceSpec) -> dict[str, str]:
    """The service's variables with secrets filled in. Raises BackendError for a secret without a value."""
    return {name: filled(run, service, text) for name, text in service.env.items()}


def filled(run: AppRun, service: ServiceSpec, text: str) -> str:
    """A text with secrets filled in. Raises BackendError for a secret without a value."""
    return SECRET_USE.sub(lambda match: secret(run, service, match[1]), text)


def _visible(run: AppRun, service: ServiceSpec) -> ServiceSpec:
    """Secrets filled in also where they can be seen: `check` refuses those that nobody allowed."""
    health = service.health
    if health is not None:
        health = replace(health, test=tuple(filled(run, service, word) for word in health.test))
    return replace(
        service,
        argv=tuple(filled(run, service, word) for word in service.argv),
        entrypoint=tuple(filled(run, service, word) for word in service.entrypoint),
        health=health,
    )


def secret(run: AppRun, service: ServiceSpec, name: str) -> str:
    """A secret's value, if the service may see it."""
    if name not in service.secrets or name not in run.secrets:
        raise BackendError(f"{run.key}: service {service.name}: secret {name!r} has no value")
    return run.secrets[name]


def secret_files(run: AppRun, service: ServiceSpec) -> dict[str, str]:
    """What is in /run/secrets: the secrets that nothing else names, and files of the service's own there."""
    own = {t[len(SECRETS) + 1 :]: filled(run, service, x) for t, x in service.files.items() if is_secret(t)}
    return own | {name: secret(run, service, name) for name in _unnamed(service)}


def _unnamed(service: ServiceSpec) -> list[str]:
    """A service's secrets that nothing in it names."""
    texts = [*service.env.values(), *service.files.values(), *service.argv, *service.entrypoint]
    texts += service.health.test if service.health is not None else ()
    named = {name for text in texts for name in SECRET_USE.findall(text)}
    return [name for name in service.secrets if name not in named]


def has_secret_files(service: ServiceSpec) -> bool:
    """Whether the runtime puts anything into its /run/secrets."""
    return bool(_unnamed(service)) or any(is_secret(target) for target in service.files)


def other_files(run: AppRun, service: ServiceSpec) -> dict[str, str]:
    """A service's files elsewhere: path inside -> text."""
    return {t: filled(run, service, x) for t, x in service.files.items() if not is_secret(t)}


def is_secret(target: str) -> bool:
    """Whether a path is that of a file directly in /run/secrets."""
    return posixpath.dirname(target) == SECRETS and posixpath.normpath(target) == target


def bad_target(target: str, *, of_the_device: bool = False, secrets: bool = True) -> bool:
    """Whether a mount there would hide what the runtime or the kernel puts there. What is the device's own, which has to be
    allowed, may show a container the device's `/sys` and `/dev`, or what is in them. Without `secrets` nothing is put into
    /run/secrets."""
    path = posixpath.normpath(target)
    tops = ("/proc", *((SECRETS,) if secrets else ()), *(() if of_the_device else ("/sys", "/dev")))
    return path == "/" or any(path == top or path.startswith(top + "/") for top in tops)
