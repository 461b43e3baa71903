"""What of a manifest this runtime cannot honour. Pure."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence

from fractal.api.app import REACHING_OUT, REACHING_OUT_THERE, AppSpec, ServiceSpec, in_device_network
from fractal.api.runtime import Refusal
from fractal_containers.config import EngineConfig
from fractal_containers.options import settings
from fractal_containers.wanted import SECRET_USE, bad_target, has_secret_files, is_secret

USER = "SERVICE_USER_"
"""Begins what a file calls the name of a user that is made for it: sealed as the password beside it is, but for all to see."""
SIGNAL = re.compile(r"SIG[A-Z0-9+-]{2,12}|\d{1,2}")


def refusals(spec: AppSpec, config: EngineConfig) -> Iterator[Refusal]:
    """Every obstacle, by service and key."""
    there = in_device_network(spec.services)
    for service in spec.services:
        if not service.image:
            yield Refusal(service.name, "image", "has none; this runtime runs images only: use `process`")
            continue
        yield from _of_the_device(service, config)
        if service.name in there:
            yield from _in_its_network(service, config)
        yield from _shared(service, spec)
        yield from _service(service, config, spec.allowed)


def _of_the_device(service: ServiceSpec, config: EngineConfig) -> Iterator[Refusal]:
    """What it would have of this device, which says by `allow` what it gives to apps."""
    wanted = {mount.needs: "volumes" for mount in service.mounts if mount.needs}
    if any(mount.shared for mount in service.mounts):
        wanted["shared-mounts"] = "volumes"
    for key, option in service.options.items():
        with contextlib.suppress(ValueError):  # told as such
            wanted |= dict.fromkeys(settings({key: option}, REACHING_OUT).ties, key)
    for what, key in wanted.items():
        if not config.allows(what):
            yield Refusal(
                service.name, key, f'this device gives it to no app; allow = ["{what}"] of its runtime'
            )


def _in_its_network(service: ServiceSpec, config: EngineConfig) -> Iterator[Refusal]:
    """With the device's own network, capabilities reach it that else reach only the app's."""
    added: frozenset[str] = frozenset()
    with contextlib.suppress(ValueError):  # told as such
        added = frozenset(settings({"cap_add": service.options.get("cap_add", "[]")}, REACHING_OUT).cap_add)
    given = {name.upper().removeprefix("CAP_") for name in config.capabilities}
    for name in sorted((added & REACHING_OUT_THERE) - given):
        yield Refusal(
            service.name,
            "cap_add",
            f"in the device's own network {name} lets the app reach the device and other apps; allow it by "
            f'`capabilities = ["{name}"]` of the runtime',
        )


def _shared(service: ServiceSpec, spec: AppSpec) -> Iterator[Refusal]:
    """A network of another service is one of its own, and another started it."""
    mode = service.network_mode
    if not mode.startswith("service:"):
        return
    other = {s.name: s for s in spec.services}.get(mode.removeprefix("service:"))
    if other is None or other.name not in service.depends_on:
        yield Refusal(service.name, "network_mode", "names no service that is started before it")
    elif other.network_mode.startswith("service:"):
        yield Refusal(service.name, "network_mode", f"{other.name} has another one's network: name that one")
    if service.ports:
        yield Refusal(service.name, "network_mode", "ports belong to the service whose network it is")


def _service(service: ServiceSpec, config: EngineConfig, allowed: Sequence[str]) -> Iterator[Refusal]:
    for key, option in service.options.items():
        try:
            settings({key: option}, frozenset(config.capabilities))
        except ValueError as error:
            yield Refusal(service.name, key, str(error).removeprefix(f"{key}: "))
    for port in service.ports:
        if not 1 <= port.container <= 65535:
            yield Refusal(service.name, f"ports.{port.name}", "needs the number that the service listens on")
    if service.network_mode == "none" and service.ports:
        yield Refusal(service.name, "network_mode", "leaves no network for the service's ports")
    of_the_device = {mount.target for mount in service.mounts if mount.host}
    targets = [*(mount.target for mount in service.mounts), *service.files]
    secrets = has_secret_files(service)
    for target in targets:
        bad = bad_target(target, of_the_device=target in of_the_device, secrets=secrets)
        bad = bad and not (target in service.files and is_secret(target))
        if bad or targets.count(target) > 1:
            yield Refusal(
                service.name, "volumes", f"nothing can be mounted at {target[:80]!r}, or only one thing"
            )
    yield from _secrets(service, allowed)
    if service.health is not None and not service.health.test and _probe_port(service) == "":
        yield Refusal(service.name, "health", "needs a TCP port")
    if not SIGNAL.fullmatch(service.stop_signal):
        yield Refusal(service.name, "stop_signal", f"{service.stop_signal!r} cannot be sent")


def _secrets(service: ServiceSpec, allowed: Sequence[str]) -> Iterator[Refusal]:
    health = service.health.test if service.health is not None else ()
    for key, words in (
        ("command", service.argv),
        ("entrypoint", service.entrypoint),
        ("healthcheck", health),
    ):
        for name in SECRET_USE.findall("\0".join(words)):
            if f"visible-secret:{name}" in allowed or name.startswith(USER):
                continue
            yield Refusal(
                service.name, key, f"secret {name!r} would be seen in `ps`; pass it in `environment`"
            )
    for name in {name for text in service.env.values() for name in SECRET_USE.findall(text)}:
        if name not in service.secrets:
            yield Refusal(
                service.name, "environment", f"{{secret.{name}}} names nothing that this service has"
            )


def _probe_port(service: ServiceSpec) -> str:
    assert service.health is not None
    names = [port.name for port in service.ports if port.protocol == "tcp"]
    return next((name for name in names if not service.health.port or name == service.health.port), "")
