"""A Podman service, by its SDK's client, asked in libpod's own words."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import podman.errors
import requests.exceptions
import urllib3.exceptions
from fractal_containers.engine import THREADS, Engine, split
from fractal_containers.found import Container, Image, Network
from fractal_containers.wanted import Filling, Wanted
from podman.api.client import APIClient

from fractal.api.backend import Probe
from fractal.api.errors import BackendError, Conflict, NotFound
from fractal_podman.config import PodmanConfig
from fractal_podman.words import LIBPOD, container, payload, qualified, volume_options

THERE = "/proc/self/exe"
"""A program that every container has. It never runs: a container that is ready to run is removed."""


class PodmanEngine(Engine):
    """See `Engine`."""

    name = "podman"
    package = "podman"
    oldest = "Podman 4.0"
    version = "1.41"
    repeats_checks = False
    """Podman leaves repeating to timers of systemd, which is not everywhere, and starts a process for each look."""

    def __init__(self, config: PodmanConfig) -> None:
        super().__init__(config)
        self.api = APIClient(
            base_url=f"unix://{config.socket}",
            version=LIBPOD,
            timeout=config.timeout,
            num_pools=THREADS,
            max_pool_size=THREADS,
        )

    def _close(self) -> None:
        self.api.close()

    def _distrusted(self) -> str:
        host = self._json("GET", "/info").get("host") or {}
        manager = host.get("cgroupManager", "")
        if manager != "cgroupfs":
            return (
                f"cgroup manager {manager!r}, with which the guard cannot freeze a run; put "
                'cgroup_manager = "cgroupfs" below [engine] into /etc/containers/containers.conf and restart podman.service'
            )
        if (host.get("security") or {}).get("rootless"):
            return "runs without root, where it can make no cgroups for the guard; use the service of root (podman.socket)"
        return ""

    def _translated(self, error: Exception, where: str) -> BackendError | None:
        match error:
            case podman.errors.NotFound():
                return NotFound(f"{where}: {error.explanation or error}")
            case podman.errors.APIError() if error.response is not None:
                status = int(error.response.status_code)
                kind = Conflict if status == 409 else BackendError
                return kind(f"{where}: {error.explanation or error}", retryable=status >= 500)
            case podman.errors.APIError() if not isinstance(error.__cause__, requests.exceptions.Timeout):
                return BackendError(
                    f"{where}: {error.__cause__ or error}; does the engine run?", retryable=True
                )
            case podman.errors.APIError() | requests.exceptions.Timeout():
                return BackendError(f"{where}: no answer in time; is the engine hung?", retryable=True)
            case (
                podman.errors.PodmanError()
                | requests.exceptions.RequestException()
                | urllib3.exceptions.HTTPError()
                | OSError()
                | ValueError()
            ):
                return BackendError(f"{where}: {error}; does the engine run?", retryable=True)
        return None

    def _json(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        """Ask; the answer's value. Called in a thread."""
        data = None if body is None else json.dumps(body)
        ask = {"GET": self.api.get, "POST": self.api.post, "DELETE": self.api.delete}[method]
        response = ask(path, params=query) if data is None else ask(path, params=query, data=data)
        response.raise_for_status()
        return response.json() if response.content.strip() else None

    async def about(self) -> str:
        """As `Engine.about`."""
        found = await self.ask("version", self._json, "GET", "/version")
        return f"Podman {found.get('Version', '?')}"

    # -- containers

    async def containers(self, labels: Mapping[str, str]) -> list[Container]:
        """As `Engine.containers`."""
        found = []
        query = {"all": "true", "filters": _filter(labels)}
        for item in await self.ask("containers", self._json, "GET", "/containers/json", **query):
            with contextlib.suppress(NotFound):  # removed since
                found.append(await self.inspect(item["Id"]))
        return found

    async def inspect(self, identity: str) -> Container:
        """As `Engine.inspect`."""
        return container(await self.ask("container", self._json, "GET", f"/containers/{identity}/json"))

    async def create(self, wanted: Wanted, what: str) -> str:
        """As `Engine.create`."""
        made = await self.ask(what, self._json, "POST", "/containers/create", payload(wanted))
        return str(made["Id"])

    async def start(self, identity: str, what: str) -> None:
        """As `Engine.start`."""
        await self.ask(what, self._json, "POST", f"/containers/{identity}/start")

    async def signal(self, identity: str, signal: str, what: str) -> None:
        """As `Engine.signal`."""
        await self.ask(what, self._json, "POST", f"/containers/{identity}/kill", signal=signal)

    async def remove(self, identity: str, what: str) -> None:
        """As `Engine.remove`."""
        query = {"force": "true", "v": "true", "timeout": "0"}
        self._none_failed(
            await self.ask(what, self._json, "DELETE", f"/containers/{identity}", **query), what
        )

    def _none_failed(self, reports: Any, what: str) -> None:
        """Removals succeed as requests even where they failed."""
        for report in reports or ():
            if report.get("Err"):
                raise BackendError(f"{self.wire.where(what)}: {report['Err']}", retryable=True)

    # -- networks, volumes, images

    async def networks(self, labels: Mapping[str, str]) -> list[Network]:
        """As `Engine.networks`."""
        found = await self.ask("networks", self._json, "GET", "/networks/json", filters=_filter(labels))
        return [
            Network(
                name=str(item["name"]),
                labels=item.get("labels") or {},
                bridge=str(item.get("network_interface", "")),
                resolver=_resolver(item),
            )
            for item in found
        ]

    async def create_network(self, network: Network, what: str) -> None:
        """As `Engine.create_network`."""
        body = {
            "name": network.name,
            "driver": "bridge",
            "network_interface": network.bridge,
            "dns_enabled": True,
            # Else it would be a way out like others, of which Podman takes any.
            "internal": network.closed,
            "labels": dict(network.labels),
        }
        await self.ask(what, self._json, "POST", "/networks/create", body)

    async def remove_network(self, name: str, what: str) -> None:
        """As `Engine.remove_network`."""
        self._none_failed(await self.ask(what, self._json, "DELETE", f"/networks/{name}"), what)

    async def volumes(self, labels: Mapping[str, str]) -> list[str]:
        """As `Engine.volumes`."""
        found = await self.ask("volumes", self._json, "GET", "/volumes/json", filters=_filter(labels))
        return [str(item["Name"]) for item in found or ()]

    async def create_volume(
        self, name: str, options: Mapping[str, str], labels: Mapping[str, str], what: str
    ) -> None:
        """As `Engine.create_volume`."""
        with contextlib.suppress(NotFound):
            await self.ask(what, self._json, "GET", f"/volumes/{name}/json")
            return
        body = {
            "Name": name,
            "Driver": "local",
            "Options": volume_options(options, os.sysconf("SC_PAGE_SIZE")),
            "Label": dict(labels),
        }
        await self.ask(what, self._json, "POST", "/volumes/create", body)

    async def remove_volume(self, name: str, what: str) -> None:
        """As `Engine.remove_volume`."""
        await self.ask(what, self._json, "DELETE", f"/volumes/{name}")

    async def fill(self, filling: Filling, what: str) -> Path:
        """As `Engine.fill`: Podman fills the volumes of a container when it is readied to run."""
        name = filling.name
        body = {
            "image": filling.image,
            "name": name,
            "entrypoint": [THERE],
            "labels": dict(filling.labels),
            "netns": {"nsmode": "none"},
            "volumes": [{"Name": name, "Dest": filling.target}],
            "cgroup_parent": filling.cgroup_parent,
            "cgroups_mode": "no-conmon",
        }
        await self.ask(what, self._json, "POST", "/containers/create", body)
        await self.ask(what, self._json, "POST", f"/containers/{name}/init")
        volume = await self.ask(what, self._json, "GET", f"/volumes/{name}/json")
        return Path(str(volume["Mountpoint"]))

    async def drop(self, name: str, what: str) -> None:
        """As `Engine.drop`."""
        with contextlib.suppress(NotFound):
            await self.remove(name, what)
        with contextlib.suppress(NotFound):
            await self.ask(what, self._json, "DELETE", f"/volumes/{name}", force="true")

    async def image(self, name: str) -> Image:
        """As `Engine.image`."""
        try:
            found = await self._image(self.reference(name))
        except NotFound:
            found = await self._image(name)  # one made here, which is called localhost/NAME
        return Image(
            digest=f"sha256:{str(found['Id']).removeprefix('sha256:')}",
            architecture=str(found.get("Architecture", "")),
        )

    async def _image(self, name: str) -> Any:
        return await self.ask(f"image {name}", self._json, "GET", f"/images/{quote(name, safe='')}/json")

    async def tag(self, image: str, name: str) -> None:
        """As `Engine.tag`."""
        repository, tag = split(self.reference(name))
        path = f"/images/{image.removeprefix('sha256:')}/tag"
        await self.ask(f"tagging {name}", self._json, "POST", path, repo=repository, tag=tag)

    def reference(self, name: str) -> str:
        """With the registry that Compose means where a name has none: Podman would look it up by its own rules."""
        return qualified(name)


def _resolver(network: Mapping[str, Any]) -> str:
    """Podman's resolver listens on the gateway's address of each network."""
    if not network.get("dns_enabled"):
        return ""
    gateways = [str(subnet.get("gateway", "")) for subnet in network.get("subnets") or ()]
    return next((address for address in gateways if "." in address), "")


def _filter(labels: Mapping[str, str]) -> str:
    return json.dumps({"label": [f"{name}={value}" for name, value in labels.items()]})


async def probe(config: PodmanConfig) -> Probe:
    """The engine's version, or why it cannot be used."""
    try:
        async with PodmanEngine(config) as engine:
            found = await engine.about()
    except BackendError as error:
        return Probe(False, f"{error} (Debian package {PodmanEngine.package})")
    return Probe(True, f"{found} at {config.socket}")
