"""`gateway`."""

from __future__ import annotations

from typing import Any

from fractal.agent.control.dispatch import command
from fractal.agent.control.names import find_device, find_group
from fractal.agent.control.params import Params
from fractal.agent.control.plan import Action, Plan, plan
from fractal.agent.control.ports import ControlAgent
from fractal.agent.control.progress import Progress
from fractal.api.errors import BackendError, InvalidInput
from fractal.api.transport import Link
from fractal.core.entries import DeviceUpdated
from fractal.core.model import Device, DeviceRole

MAX_ADDRESS = 255


@command("gateway.list")
async def list_gateways(agent: ControlAgent, params: Params, _: Progress) -> dict[str, Any]:
    """All gateways, with what this device's transport sees of them."""
    state = find_group(agent, params).journal.state
    links: dict[str, Link] = {}
    problem = ""
    try:
        links = {link.device: link for link in await agent.transport.links()}
    except BackendError as error:
        problem = str(error)
    found = []
    for device in sorted(state.devices.values(), key=lambda d: d.name.casefold()):
        if DeviceRole.GATEWAY not in device.roles or device.removed:
            continue
        link = links.get(device.id)
        found.append(
            {
                "device": device.id,
                "name": device.name,
                "address": device.address,
                "up": True if device.id == agent.keys.id else None if link is None else link.up,
                "last_seen_s": None if link is None else link.last_seen,
                "detail": _detail(agent, device, link, problem),
            }
        )
    return {"gateways": found}


def _detail(agent: ControlAgent, device: Device, link: Link | None, problem: str) -> str:
    if device.id == agent.keys.id:
        return "this device"
    return problem if link is None else link.detail


@command("gateway.add")
async def add_gateway(agent: ControlAgent, params: Params, _: Progress) -> Plan:
    """Give a device the gateway role and its address."""
    group = find_group(agent, params)
    device = find_device(group.journal.state, params.text("device"))
    address = params.text("address", device.address).strip()
    if len(address) > MAX_ADDRESS or not address.isprintable() or " " in address:
        raise InvalidInput(f"{address[:80]!r} is no host name or address")
    roles = device.roles | {DeviceRole.GATEWAY}
    result = {"device": device.id}
    if roles == device.roles and address == device.address:
        return plan(result=result)
    entry = DeviceUpdated(device=device.id, roles=roles, address=address)
    return plan(
        Action(
            f"Make {device.name} a gateway",
            {"device": device.id, "address": address},
            lambda _: group.journal.append(entry),
        ),
        result=result,
    )


@command("gateway.remove")
async def remove_gateway(agent: ControlAgent, params: Params, _: Progress) -> Plan:
    """Take the gateway role away."""
    group = find_group(agent, params)
    device = find_device(group.journal.state, params.text("device"))
    if DeviceRole.GATEWAY not in device.roles:
        raise InvalidInput(f"{device.name} is no gateway")
    entry = DeviceUpdated(device=device.id, roles=device.roles - {DeviceRole.GATEWAY})
    return plan(
        Action(
            f"Stop using {device.name} as a gateway",
            {"device": device.id},
            lambda _: group.journal.append(entry),
        ),
        result={"device": device.id},
    )
