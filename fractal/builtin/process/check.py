"""What of a manifest the process runtime cannot honour. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from fractal.api.app import AppSpec, ServiceSpec
from fractal.api.runtime import Refusal
from fractal.builtin.process.environments import REQUIREMENT
from fractal.builtin.process.placeholders import names, texts
from fractal.guard.commands import SIGNALS

ASK_NOTHING = frozenset({"labels", "expose", "healthcheck.disable"})
"""Options that a process without a container has anyway, or that nobody here reads."""


def refusals(spec: AppSpec) -> Iterator[Refusal]:
    """Every obstacle, by service and key."""
    ports = {f"port.{s.name}.{p.name}" for s in spec.services for p in s.ports}
    for service in spec.services:
        if service.process is None:
            reason = "runs from an image only; this runtime runs no images: use `docker` or `podman` on this device"
            yield Refusal(service.name, "process", reason)
            continue
        for mount in service.mounts:
            if not mount.volume:
                yield Refusal(
                    service.name,
                    "volumes",
                    f"{mount.host or mount.needs or mount.target} of the device: `data` names volumes only",
                )
        for key, commands in (("post_start", service.post_start), ("pre_stop", service.pre_stop)):
            if commands and not service.image:  # beside an image they are the container's
                yield Refusal(
                    service.name, key, "is run in containers only: do it in `x-homeserver.process.argv`"
                )
        if not service.image:
            for key in _of_containers(service):
                yield Refusal(
                    service.name, key, "is for containers: a process has the agent's user and place"
                )
        if service.files and not service.image:
            yield Refusal(service.name, "configs", "no place for it: use `x-homeserver.process.files`")
        yield from _service(spec, service, ports)


def _of_containers(service: ServiceSpec) -> Iterator[str]:
    """Keys of a service without an image that only a container could honour."""
    said = {
        "command": service.argv,
        "entrypoint": service.entrypoint,
        "user": service.user,
        "working_dir": service.working_dir,
    }
    yield from (key for key, value in said.items() if value)
    yield from (key for key, text in service.options.items() if key not in ASK_NOTHING and text != "false")


def _service(spec: AppSpec, service: ServiceSpec, ports: set[str]) -> Iterator[Refusal]:
    assert service.process is not None
    known = {"python", "run"} | ports
    known |= {f"port.{port.name}" for port in service.ports}
    known |= {f"data.{volume}" for volume in spec.volumes}
    known |= {f"secret.{name}" for name in service.secrets}
    known |= {f"file.{name}" for name in service.process.files}
    if not service.process.argv:
        yield Refusal(service.name, "process.argv", "is empty")
    for key, text in texts(service):
        for name in names(text):
            if name.startswith("secret.") and key.startswith(("process.argv", "healthcheck.test")):
                yield Refusal(
                    service.name, key, f"{{{name}}} would be seen in `ps`; pass it in `environment` or a file"
                )
            elif name not in known:
                yield Refusal(service.name, key, f"{{{name}}} names nothing that this service has")
    for requirement in service.process.requirements:
        if not REQUIREMENT.fullmatch(requirement):
            yield Refusal(
                service.name, "process.requirements", f"{requirement!r} is not pinned as name==version"
            )
    for port in service.ports:
        if port.protocol not in ("tcp", "udp"):
            yield Refusal(service.name, f"ports.{port.name}", f"protocol {port.protocol!r} is not tcp or udp")
    if service.stop_signal not in SIGNALS:
        yield Refusal(service.name, "stop_signal", f"{service.stop_signal!r} cannot be sent")
    if service.limits.cpus:
        yield Refusal(
            service.name, "cpus", "cannot be limited without a container; leave it out for this runtime"
        )
