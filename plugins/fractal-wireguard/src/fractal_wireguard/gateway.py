"""The gateway's end: leads names and ports to devices without decrypting anything."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from fractal.api.context import Context
from fractal.api.errors import BackendError, Conflict, FractalError, InvalidInput
from fractal.api.names import normal_host
from fractal.api.transport import Peer, RouteKind, Target
from fractal_wireguard import passing
from fractal_wireguard.addresses import of_app, of_device, read_contact
from fractal_wireguard.config import WireguardConfig
from fractal_wireguard.device import port_of
from fractal_wireguard.firewall import Port
from fractal_wireguard.keys import write_private
from fractal_wireguard.link import Wanted
from fractal_wireguard.network import Network

SAVE_EVERY = 1.0


@dataclass(frozen=True, slots=True)
class Led:
    """Where one app's names and ports lead."""

    device: str
    """"" while it is changing hands."""
    last: str
    """The device that had it before, whose connections go on until there is a new one."""


class Gateway:
    """Devices, and the table of what leads to them."""

    def __init__(self, context: Context, config: WireguardConfig, network: Network) -> None:
        self._context = context
        self._network = network
        self._saved_file = context.state_dir / "endpoints.json"
        self._saved: dict[str, str] = {}
        self._passing = passing.Passing(context, config) if config.https_port or config.http_port else None
        self._keys: dict[str, str] = {}
        self._apps: dict[tuple[str, str], Led] = {}
        self._reserved: dict[Port, socket.socket] = {}
        self.moving: frozenset[str] = frozenset()
        """Addresses of the apps that change hands."""

    async def open(self) -> None:
        """Bind the public ports. Raises BackendError naming the port."""
        with contextlib.suppress(
            OSError, ValueError, AttributeError
        ):  # written whole or lost: then devices come by themselves
            self._saved = {str(k): str(v) for k, v in json.loads(self._saved_file.read_text()).items()}
        if self._passing is not None:
            await self._passing.open()

    async def close(self) -> None:
        """End all that passes through."""
        if self._passing is not None:
            await self._passing.close()
        for sock in self._reserved.values():
            sock.close()

    @property
    def devices(self) -> dict[str, str]:
        """Public keys of the devices that are served."""
        return self._keys

    def peers(self) -> dict[str, Wanted]:
        """Devices as WireGuard is to have them, by public key, with the addresses of the apps that each serves."""
        allowed = {device: set(of_device(device).allowed) for device in self._keys}
        taken = {address: device for device, own in allowed.items() for address in own}
        for app, led in self._apps.items():
            device = led.device or led.last
            for address in of_app(*app).allowed if device in allowed else ():
                # Two apps' IPv4 addresses may meet; the first has it. `apply` told.
                if taken.setdefault(address, device) == device:
                    allowed[device].add(address)
        return {
            key: Wanted(allowed=frozenset(allowed[device]), endpoint=self._saved.get(key, ""))
            for device, key in self._keys.items()
        }

    async def apply(self, peers: Sequence[Peer], targets: Sequence[Target]) -> list[FractalError]:
        """Make exactly these stand; what could not is told. Raises BackendError."""
        keys, problems = self._read(peers)
        names, ports, wrong = _sorted_out(targets)
        problems += wrong
        before, self._apps = self._apps, _led(self._apps, targets)
        self.moving = frozenset(of_app(target.group, target.app).v6 for target in targets if target.moving)
        self._keys = keys
        problems += _meeting(self._apps, keys, targets)
        had, wrong = self._reserve(ports)
        problems += wrong
        held = [of_app(*app) for app, led in self._apps.items() if not led.device]
        rules = self._network.rules
        self._network.rules = replace(
            rules,
            leading=frozenset(had),
            held=frozenset(a for address in held for a in (address.v4, address.v6)),
        )
        self._network.apps = {port.address for port in had}
        ended = _ended(before, self._apps, keys)
        # Nothing gets through to an app that is held: what is established leads to where it was. Once it goes on, who waited is let
        # through at once, and is not to be taken for one of those.
        old = {of_app(*app).v6 for app in ended if not before[app].device}
        begun = await self._passing.established(old) if self._passing is not None else []
        # First nothing new is let through to those that are held, then the peers, then what was held may go on.
        await self._network.apply()
        if self._passing is not None:
            await self._passing.apply(names)
            begun += await self._passing.established({of_app(*app).v6 for app in ended} - old)
            await self._passing.shut(begun)
        return problems

    async def hasten(self, near: bool) -> None:
        """Have connections to what changes hands tried quickly, if all devices are `near`. Raises BackendError, OSError."""
        if self._passing is not None:
            await self._passing.hasten(self.moving if near else frozenset())

    async def save(self) -> None:
        """Remember where the devices are, so that a restart need not wait for them to speak. Raises BackendError, OSError."""
        found = await self._network.peers()
        served = set(self._keys.values())
        now = {key: peer.endpoint for key, peer in sorted(found.items()) if key in served and peer.endpoint}
        if now and now != self._saved:
            self._saved = now
            await self._context.workers.run(write_private, self._saved_file, json.dumps(now))

    def _read(self, peers: Sequence[Peer]) -> tuple[dict[str, str], list[FractalError]]:
        keys: dict[str, str] = {}
        owners: dict[str, str] = {}
        problems: list[FractalError] = []
        for peer in peers:
            # A device that has published nothing yet is no problem: it has just joined.
            if peer.device == self._context.device or not peer.contact:
                continue
            try:
                key = read_contact(peer.device, peer.contact).key
                if (first := owners.setdefault(key, peer.device)) != peer.device:
                    raise Conflict(f"device {peer.device} has published the key of device {first}")
                keys[peer.device] = key
            except FractalError as error:
                problems.append(error)
        return keys, problems

    def _reserve(self, wanted: Mapping[Port, Target]) -> tuple[list[Port], list[FractalError]]:
        """Take the public ports, so that nobody else's packets are led away and nobody else gets the port."""
        problems: list[FractalError] = []
        for port in self._reserved.keys() - wanted.keys():
            self._reserved.pop(port).close()
        for port, target in wanted.items():
            if port in self._reserved:
                continue
            kind = socket.SOCK_STREAM if port.kind == "tcp" else socket.SOCK_DGRAM
            sock = socket.socket(socket.AF_INET, kind)
            try:
                sock.bind(("", port.port))
                self._reserved[port] = sock
            except OSError as error:
                sock.close()
                problems.append(
                    BackendError(
                        f"transport wireguard: port {port.port} for route {target.name} of app {target.app} cannot be had: "
                        f"{error.strerror}: stop what uses it, or choose another port"
                    )
                )
        return list(self._reserved), problems


def _led(before: Mapping[tuple[str, str], Led], targets: Sequence[Target]) -> dict[tuple[str, str], Led]:
    led: dict[tuple[str, str], Led] = {}
    for target in targets:
        app = target.group, target.app
        old = before.get(app)
        led[app] = Led(target.device, "" if target.device or old is None else old.device or old.last)
    return led


def _ended(
    before: Mapping[tuple[str, str], Led], now: Mapping[tuple[str, str], Led], keys: Mapping[str, str]
) -> set[tuple[str, str]]:
    """Apps whose old connections lead nowhere: gone, moved, or on a device that is not served any more."""
    ended = set()
    for app, old in before.items():
        had, new = old.device or old.last, now.get(app)
        if had and (new is None or (new.device or new.last) != had or had not in keys):
            ended.add(app)
    return ended


def _meeting(
    apps: Iterable[tuple[str, str]], devices: Iterable[str], targets: Sequence[Target]
) -> list[FractalError]:
    """TCP and UDP routes of apps whose IPv4 address somebody else has already, as `Gateway.peers` shares them out."""
    taken: dict[str, object] = {of_device(device).v4: device for device in devices}
    without = {app for app in apps if taken.setdefault(of_app(*app).v4, app) != app}
    return [
        Conflict(
            f"route {target.name} of app {target.app}: its tunnel address {of_app(target.group, target.app).v4} is another's by "
            "chance: install the app anew, which gives it another"
        )
        for target in targets
        if target.kind is not RouteKind.HTTPS and (target.group, target.app) in without
    ]


def _sorted_out(
    targets: Sequence[Target],
) -> tuple[dict[str, str], dict[Port, Target], list[FractalError]]:
    """App addresses by name, targets by port. What is wanted twice stays with the first."""
    names: dict[str, Target] = {}
    ports: dict[tuple[str, int], Target] = {}
    problems: list[FractalError] = []
    for target in targets:
        try:
            if target.kind is RouteKind.HTTPS:
                first = names.setdefault(normal_host(target.name), target)
            else:
                first = ports.setdefault((target.kind.value, port_of(target.kind, target.name)), target)
            if first != target:
                raise Conflict(
                    f"route {target.name} is wanted by app {first.app} and app {target.app}; the first has it"
                )
        except (InvalidInput, Conflict) as error:
            problems.append(error)
    return (
        {name: of_app(target.group, target.app).v6 for name, target in names.items()},
        {Port(kind, number, of_app(t.group, t.app).v4): t for (kind, number), t in ports.items()},
        problems,
    )
