"""An app as a runtime sees it: services to run with volumes bound in. Made from a manifest by `fractal.manifest`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

REACHING_OUT = frozenset(
    {"ALL", "SYS_ADMIN", "SYS_MODULE", "SYS_RAWIO", "SYS_BOOT", "SYS_TIME", "SYS_PTRACE", "DAC_READ_SEARCH"}
    | {
        "BPF",
        "PERFMON",
        "MAC_ADMIN",
        "MAC_OVERRIDE",
        "SYSLOG",
        "WAKE_ALARM",
        "BLOCK_SUSPEND",
        "AUDIT_CONTROL",
    }
)
"""Capabilities with which a program inside can reach the device, other apps, or the guard."""
REACHING_OUT_THERE = frozenset({"NET_ADMIN", "NET_RAW"})
"""The same where the network is the device's own: the first rewrites its firewall, which keeps apps apart, and the second sees all
that goes through, and sends past that firewall. In a network of the app's own they reach nothing else. capabilities(7), packet(7)."""

HOOK_TIMEOUT = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A folder of the app's volume root, bound into a service."""

    volume: str
    """Name of a directory directly below the volume root; "" if it is none of the app's."""
    host: str = ""
    """Absolute path on the device instead, which `AppSpec.allowed` has to name."""
    target: str
    """Absolute path inside the service (for the process runtime: only a name, see `ProcessSpec`)."""
    read_only: bool = False
    engine: Mapping[str, str] = field(default_factory=dict)
    """Instead of either, what the engine mounts: `type` (`nfs`, `nfs4`, `cifs` or `tmpfs`), `device` and `o` as mount(8) has
    them, and `volume`, its name in the app's file."""
    shared: bool = False
    """Whether what is mounted below it inside is seen on the device too; only with `host`."""

    @property
    def needs(self) -> str:
        """What `AppSpec.allowed` has to name for it; "" for what is the app's own."""
        if self.host:
            return f"host-path:{self.host}"
        kind, device = self.engine.get("type", ""), self.engine.get("device", "")
        if kind in ("", "tmpfs"):
            return ""
        words = dict(word.partition("=")[::2] for word in self.engine.get("o", "").split(","))
        return f"mount:{kind}:{words.get('addr', '') if device.startswith(':') else ''}{device}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """A port that a service listens on, inside its own network where the runtime gives it one."""

    name: str
    """`web`, or any name unique in the service."""
    container: int
    """Number inside; 0 lets the process runtime choose."""
    protocol: str = "tcp"


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthSpec:
    """How to see that a service is healthy."""

    test: tuple[str, ...] = ()
    """argv to run in the service; exit 0 is healthy. Empty: `http` or `tcp` decides."""
    http: str = ""
    """Path to GET on the service's `port`; any status below 500 is healthy."""
    port: str = ""
    """Name of the port for `http` (or, without `http`, for a TCP connect)."""
    interval: float = 2.0
    """Seconds between checks."""
    timeout: float = 5.0
    """Seconds after which a check has failed."""
    retries: int = 3
    """Failed checks in a row that make the service unhealthy."""
    start_period: float = 60.0
    """Seconds after the start in which a failed check does not count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Resource limits; 0 means none."""

    memory: int = 0
    """Bytes."""
    cpus: float = 0.0
    """Processors' worth of time."""
    processes: int = 0
    """Processes and threads."""
    files: int = 0
    """Open files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSpec:
    """`x-homeserver.process`: how the `process` runtime starts a service, without any image.

    In `argv`, `env` and `files` the placeholders `{port.NAME}`, `{data.VOLUME}`, `{secret.NAME}`, `{python}`, `{run}`
    (a private scratch folder) and `{file.NAME}` are replaced.
    """

    argv: tuple[str, ...]
    requirements: tuple[str, ...] = ()
    """Python requirements, pinned by `name==version`; installed into an environment of the app's own."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Configuration files written before start: name -> content."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command that is run inside a service beside its own, with the service's environment."""

    argv: tuple[str, ...]
    user: str = ""
    """"" is the service's own."""
    working_dir: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    """Variables beside the service's; none of them holds a secret."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSpec:
    """One service of an app."""

    name: str
    image: str = ""
    argv: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()
    """Names of the app's secrets that this service may see."""
    mounts: tuple[Mount, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    """Absolute path inside -> text of a file that is put there before each start, read-only. `{secret.NAME}` is replaced."""
    ports: tuple[Port, ...] = ()
    depends_on: Mapping[str, str] = field(default_factory=dict)
    """Service -> `started` | `healthy` | `completed`."""
    health: HealthSpec | None = None
    limits: Limits = field(default_factory=Limits)
    stop_signal: str = "SIGTERM"
    stop_grace: float = 10.0
    """Seconds between the stop signal and SIGKILL."""
    restart: str = "always"
    """`always` | `on-failure` | `no`; done by the agent, never by an engine."""
    working_dir: str = ""
    user: str = ""
    process: ProcessSpec | None = None
    post_start: tuple[Command, ...] = ()
    """Run in order after each start, before anything that depends on the service; one that fails makes the start fail."""
    pre_stop: tuple[Command, ...] = ()
    """Run in order before the stop signal, within `stop_grace` all together; one that fails does not keep it from coming."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Further Compose keys that a runtime honours, by key, as canonical JSON."""

    @property
    def network_mode(self) -> str:
        """`none`, `host` or `service:NAME`; "" for networks of the app's own. What cannot be read is "" too, and no runtime takes it."""
        try:
            mode = json.loads(self.options.get("network_mode", '""'))
        except ValueError:
            return ""
        return mode if isinstance(mode, str) else ""


def in_device_network(services: Iterable[ServiceSpec]) -> frozenset[str]:
    """Names of the services whose network is the device's own, also by way of other services."""
    modes = {one.name: one.network_mode for one in services}
    found = {name for name, mode in modes.items() if mode == "host"}
    shared = {
        name: mode.removeprefix("service:") for name, mode in modes.items() if mode.startswith("service:")
    }
    while more := {name for name, other in shared.items() if other in found} - found:
        found |= more
    return frozenset(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class AppSpec:
    """An app's services in dependency order, its volumes and its offered web service."""

    name: str
    services: tuple[ServiceSpec, ...]
    volumes: tuple[str, ...] = ()
    """Directories below the volume root."""
    web_service: str = ""
    web_port: str = ""
    """Service and port name that a route leads to unless it says otherwise."""
    architectures: tuple[str, ...] = ()
    """Machine names as `platform.machine()` gives them; empty: any."""
    generated_secrets: tuple[str, ...] = ()
    """Secrets to make at install, 32 random bytes each in URL-safe base64."""
    secret_forms: Mapping[str, str] = field(default_factory=dict)
    """Generated secret -> how it looks (`hex:64`, see the reference of manifests), where not as above."""
    ignored: tuple[str, ...] = ()
    """Those of `volumes` that are kept on the device only: in no snapshot, and empty wherever the app comes to."""
    given_secrets: tuple[str, ...] = ()
    """Secrets whose values whoever installed it gave, by the variables' names."""
    values: Mapping[str, str] = field(default_factory=dict)
    """Values given for variables that are in clear in here: for a later reading of the manifest."""
    allowed: tuple[str, ...] = ()
    """What whoever installed it allowed it to have of a device: `host-path:/srv/media`. It cannot fail over then."""
    consistency: str = "crash"
    """`crash` | `pause` | `hook`: how a snapshot is made consistent."""
    before_snapshot: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """(service, argv) to run before a snapshot when consistency is `hook`."""
    after_snapshot: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """(service, argv) to run after it, whatever came of it and of those before."""
    hook_timeout: float = HOOK_TIMEOUT
    """Seconds that all hooks before a snapshot have together, and each of those after it by itself."""


def run_key(group: str, app: str, epoch: int) -> str:
    """Name of a run of an app, fit for labels, paths and cgroups."""
    return f"{group}.{app}.{epoch}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AppRun:
    """One run of an app on this device: what to start, at which epoch, on which data."""

    group: str
    app: str
    epoch: int
    spec: AppSpec
    volume_root: Path
    ignored_root: Path | None = None
    """Where the folders of `AppSpec.ignored` are; needed if there are any."""
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    images: Mapping[str, str] = field(default_factory=dict)
    """Image as the services name it -> digest (`SupportsImages.image_digest`) of the one to run, which is on this device. One
    that is not in here is what its name means on this device, pulled if need be."""

    def folder(self, volume: str) -> Path:
        """The folder of a volume on this device."""
        if volume not in self.spec.ignored:
            return self.volume_root / volume
        assert self.ignored_root is not None, volume
        return self.ignored_root / volume

    @property
    def key(self) -> str:
        """Name of the run, see `run_key`."""
        return run_key(self.group, self.app, self.epoch)
