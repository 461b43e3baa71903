"""The Docker engine, by its SDK's low-level client, which speaks the engine's own words."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import docker
import docker.errors
import requests.exceptions
import urllib3.exceptions
from docker.types import Mount
from docker.types.containers import HostConfig
from fractal_containers.engine import THREADS, Engine, split
from fractal_containers.found import Container, Image, Network
from fractal_containers.wanted import Filling, Wanted

from fractal.api.backend import Probe
from fractal.api.errors import BackendError, Conflict, NotFound
from fractal_docker.config import DockerConfig
from fractal_docker.words import API, aliases, container, payload

BRIDGE = "com.docker.network.bridge.name"


class DockerEngine(Engine):
    """See `Engine`."""

    name = "docker"
    package = "docker.io"
    oldest = "Docker 20.10"
    version = API
    repeats_checks = True

    def __init__(self, config: DockerConfig) -> None:
        super().__init__(config)
        self.api = docker.APIClient(
            base_url=f"unix://{config.socket}", version=API, timeout=config.timeout, num_pools=THREADS
        )

    def _close(self) -> None:
        self.api.close()

    def _distrusted(self) -> str:
        """What can only be seen once the engine answers: where it places containers, and what it calls a digest."""
        info = self.api.info()
        driver, version = info.get("CgroupDriver", ""), str(info.get("CgroupVersion", "1"))
        if driver != "cgroupfs" and (driver, version) != ("systemd", "2"):
            return (
                f"cgroup driver {driver!r} on cgroup v{version}, with which the guard cannot freeze a run; put "
                '{"exec-opts": ["native.cgroupdriver=cgroupfs"]} into /etc/docker/daemon.json and restart it'
            )
        if any("name=rootless" in str(option) for option in info.get("SecurityOptions") or ()):
            return "runs without root, where its cgroups are not those that the guard freezes; use the one of root"
        if any("containerd.snapshotter" in str(entry) for entry in info.get("DriverStatus") or ()):
            return (
                "images are in containerd's store, which gives them other digests than every other engine; put "
                '{"features": {"containerd-snapshotter": false}} into /etc/docker/daemon.json and restart it'
            )
        return ""

    def _translated(self, error: Exception, where: str) -> BackendError | None:
        match error:
            case docker.errors.NotFound():
                return NotFound(f"{where}: {error.explanation or error}")
            case docker.errors.APIError():
                status = error.response.status_code if error.response is not None else 500
                kind = Conflict if status == 409 else BackendError
                return kind(f"{where}: {error.explanation or error}", retryable=status >= 500)
            case requests.exceptions.Timeout():
                return BackendError(f"{where}: no answer in time; is the engine hung?", retryable=True)
            case (
                docker.errors.DockerException()
                | requests.exceptions.RequestException()
                | urllib3.exceptions.HTTPError()
                | OSError()
            ):
                return BackendError(f"{where}: {error}; does the engine run?", retryable=True)
        return None

    async def about(self) -> str:
        """As `Engine.about`."""
        found = await self.ask("version", self.api.version)
        return f"Docker {found.get('Version', '?')}"

    # -- containers

    async def containers(self, labels: Mapping[str, str]) -> list[Container]:
        """As `Engine.containers`."""
        found = []
        filters = {"label": _filter(labels)}
        for item in await self.ask("containers", self.api.containers, all=True, filters=filters):
            with contextlib.suppress(NotFound):  # removed since
                found.append(await self.inspect(item["Id"]))
        return found

    async def inspect(self, identity: str) -> Container:
        """As `Engine.inspect`."""
        return container(await self.ask("container", self.api.inspect_container, identity))

    async def create(self, wanted: Wanted, what: str) -> str:
        """As `Engine.create`."""
        made = await self.ask(what, self._create, payload(wanted))
        identity = str(made["Id"])
        for network in wanted.networks[1:]:
            join = self.api.connect_container_to_network
            await self.ask(what, join, identity, network, aliases=aliases(wanted))
        return identity

    def _create(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Create a container below its cgroup, as the engine's driver has to be told: it may have changed with a restart.

        What is no slice is refused by the systemd driver; a slice's bare name would be taken by the cgroupfs driver, for
        a cgroup elsewhere. So the driver is asked for at once before.
        """
        if self.api.info().get("CgroupDriver") == "systemd":
            host = asked["host_config"]
            host["CgroupParent"] = PurePosixPath(host["CgroupParent"]).name
        made: dict[str, Any] = self.api.create_container(**asked)
        return made

    async def start(self, identity: str, what: str) -> None:
        """As `Engine.start`."""
        await self.ask(what, self.api.start, identity)

    async def signal(self, identity: str, signal: str, what: str) -> None:
        """As `Engine.signal`."""
        await self.ask(what, self.api.kill, identity, signal)

    async def remove(self, identity: str, what: str) -> None:
        """As `Engine.remove`."""
        await self.ask(what, self.api.remove_container, identity, v=True, force=True)

    # -- networks, volumes, images

    async def networks(self, labels: Mapping[str, str]) -> list[Network]:
        """As `Engine.networks`."""
        found = await self.ask("networks", self.api.networks, filters={"label": _filter(labels)})
        return [
            Network(
                name=str(item["Name"]),
                labels=item.get("Labels") or {},
                bridge=(item.get("Options") or {}).get(BRIDGE, ""),
            )
            for item in found
        ]

    async def create_network(self, network: Network, what: str) -> None:
        """As `Engine.create_network`."""
        await self.ask(
            what,
            self.api.create_network,
            network.name,
            driver="bridge",
            check_duplicate=True,
            options={BRIDGE: network.bridge},
            labels=dict(network.labels),
        )

    async def remove_network(self, name: str, what: str) -> None:
        """As `Engine.remove_network`."""
        await self.ask(what, self.api.remove_network, name)

    async def volumes(self, labels: Mapping[str, str]) -> list[str]:
        """As `Engine.volumes`."""
        found = await self.ask("volumes", self.api.volumes, filters={"label": _filter(labels)})
        return [str(item["Name"]) for item in found["Volumes"] or ()]

    async def create_volume(
        self, name: str, options: Mapping[str, str], labels: Mapping[str, str], what: str
    ) -> None:
        """As `Engine.create_volume`."""
        await self.ask(what, self.api.create_volume, name, "local", dict(options), dict(labels))

    async def remove_volume(self, name: str, what: str) -> None:
        """As `Engine.remove_volume`."""
        await self.ask(what, self.api.remove_volume, name)

    async def fill(self, filling: Filling, what: str) -> Path:
        """As `Engine.fill`: Docker fills the volumes of a container when it is made."""
        mount = Mount(filling.target, filling.name, type="volume")
        host = HostConfig(
            version=API, network_mode="none", mounts=[mount], cgroup_parent=filling.cgroup_parent
        )
        asked = {
            "image": filling.image,
            "command": ["-"],
            "name": filling.name,
            "labels": dict(filling.labels),
            "host_config": host,
        }
        await self.ask(what, self._create, asked)
        volume: dict[str, Any] = await self.ask(what, self.api.inspect_volume, filling.name)
        return Path(str(volume["Mountpoint"]))

    async def drop(self, name: str, what: str) -> None:
        """As `Engine.drop`."""
        with contextlib.suppress(NotFound):
            await self.ask(what, self.api.remove_container, name, force=True)
        with contextlib.suppress(NotFound):
            await self.ask(what, self.api.remove_volume, name)

    async def image(self, name: str) -> Image:
        """As `Engine.image`."""
        found = await self.ask(f"image {name}", self.api.inspect_image, name)
        variant = found.get("Variant")
        return Image(
            digest=str(found["Id"]),
            architecture=f"{found.get('Architecture', '')}{'/' + variant if variant else ''}",
        )

    async def tag(self, image: str, name: str) -> None:
        """As `Engine.tag`."""
        await self.ask(f"tagging {name}", self.api.tag, image, *split(name))


def _filter(labels: Mapping[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in labels.items()]


async def probe(config: DockerConfig) -> Probe:
    """The engine's version, or why it cannot be used."""
    try:
        async with DockerEngine(config) as engine:
            found = await engine.about()
    except BackendError as error:
        return Probe(False, f"{error} (Debian package {DockerEngine.package})")
    return Probe(True, f"{found} at {config.socket}")
