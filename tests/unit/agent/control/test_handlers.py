"""Handlers on real logs and a real store: two devices, from creating a group to leaving it.

Every call goes through `run`, which holds each answer against its declared shape, and makes each change twice: first dry, after
which nothing may be different.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fractal.agent.control import (
    catalog,
    device,
    doctor,
    gateway,
    group,
    leaving,
    log,
    member,
    route,
    status,
    store,
)
from fractal.agent.control.contract import PLAN, mismatches
from fractal.agent.control.dispatch import collect
from fractal.agent.control.names import UnknownName
from fractal.agent.control.params import parse_params
from fractal.agent.control.progress import Silent
from fractal.agent.pulse import Pulse
from fractal.agent.walk import Break
from fractal.api.errors import BackendError, Conflict, Denied, InvalidInput, NotFound, NotInstalled
from fractal.api.snapshot import Usage
from fractal.api.store import Store
from fractal.api.transport import Link
from fractal.builtin.memory_store import MemoryObjects, MemoryStore, MemoryStoreConfig
from fractal.core.entries import DeviceUpdated
from fractal.core.model import DeviceRole, StoreEntry

COMMANDS = collect(catalog, device, doctor, gateway, group, leaving, log, member, route, status, store)
SILENT = Silent()


class Group:
    """As `GroupAgent`, without jobs."""

    def __init__(self, agent: Agent, journal: Any) -> None:
        self.agent = agent
        self.journal = journal
        self.pulse = Pulse()
        self.held: list[str] = []
        self.erased = False

    def unstored(self) -> list[str]:
        return self.held

    async def erase(self) -> None:
        self.erased = True

    async def walk(self, route: str, *, whole: bool = True) -> list[Break]:
        return [Break(f"{route} is led into the void", "Walk with whole agents.")]

    def status(self) -> dict[str, Any]:
        state = self.journal.state
        return {
            "group": {
                "id": state.id,
                "name": state.name,
                "position": state.position,
                "log_age_s": 1.0,
                "alarms": [],
                "pending": len(state.requests),
            },
            "devices": [
                {
                    "id": d.id,
                    "name": d.name,
                    "member": state.members[d.member].name,
                    "roles": sorted(r.value for r in d.roles),
                    "this": d.id == self.agent.keys.id,
                    "online": d.id == self.agent.keys.id,
                    "last_seen_s": None,
                    "draining": d.draining,
                    "version": d.version,
                }
                for d in state.devices.values()
                if not d.removed
            ],
            "apps": [],
        }


class Transport:
    """Sees every gateway as down."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    async def links(self) -> list[Link]:
        gateways = [
            d.id
            for g in self._agent.groups.values()
            for d in g.journal.state.devices.values()
            if DeviceRole.GATEWAY in d.roles
        ]
        return [Link(device=i, up=False, detail="no route to host") for i in gateways]


class Plugins:
    """The memory store and no other."""

    def store(self, name: str) -> Any:
        if name != "memory":
            raise NotInstalled(f"no store backend {name!r}")
        return SimpleNamespace(name="memory", config=MemoryStoreConfig)

    def health_checks(self) -> list[Any]:
        return []


class Nothing:
    """A runtime without runs, a snapshotter without volumes."""

    async def observe(self) -> list[Any]:
        return []

    async def volumes(self) -> list[str]:
        return []

    async def usage(self) -> Usage:
        return Usage(total=100, free=100)


class Agent:
    """As the agent, on a `Peer`."""

    def __init__(self, peer: Any, store: Store) -> None:
        self._peer = peer
        self._store = store
        self.name = peer.name
        self.keys, self.notes, self.clock = peer.keys, peer.notes, peer.clock
        self.entropy, self.coordinator = peer.entropy, peer.coordinator
        self.groups: dict[str, Group] = {}
        self.awaiting: set[str] = set()
        self.plugins, self.transport = Plugins(), Transport(self)
        section = SimpleNamespace(name=peer.name, roles=frozenset({DeviceRole.HOST}))
        backend = SimpleNamespace(backend="none")
        self.config = SimpleNamespace(device=section, catalogs=(), runtime=backend, snapshot=backend)
        self.runtime = self.snapshotter = Nothing()

    async def open_group(self, gid: str) -> Group:
        if gid not in self.groups:
            self.groups[gid] = Group(self, await self._peer.journal(gid))
        return self.groups[gid]

    async def close_group(self, gid: str) -> None:
        self.groups.pop(gid, None)

    @asynccontextmanager
    async def open_store(self, entry: StoreEntry) -> AsyncIterator[Store]:
        yield self._store

    def status(self) -> Mapping[str, Any]:
        return {"guard": "holding"}

    async def poll(self) -> None:
        for one in self.groups.values():
            await one.journal.poll(0.0)

    def facts(self) -> object:
        """All that a dry run must leave alone."""
        states = {gid: one.journal.state for gid, one in self.groups.items()}
        return states, self.notes.scan("")


async def run(agent: Agent, command: str, /, **values: object) -> dict[str, Any]:
    await agent.poll()
    one = COMMANDS[command]
    if one.spec.changes:
        before = agent.facts()
        dry = await one.run(
            agent, parse_params(one.spec, json.dumps({**values, "dry_run": True}).encode()), SILENT
        )
        assert mismatches(dry, PLAN) == []
        await agent.poll()
        assert agent.facts() == before
    result = dict(await one.run(agent, parse_params(one.spec, json.dumps(values).encode()), SILENT))
    assert mismatches(result, one.spec.result) == []
    if one.spec.changes:
        assert result["plan"] == dry["plan"]
    return result


@pytest.fixture
def new_store() -> Store:
    return MemoryStore(MemoryStoreConfig(objects=MemoryObjects()))


class Overwriting(MemoryStore):
    """Forgets what it has before each create."""

    async def put_new(self, key: str, data: bytes | AsyncIterator[bytes]) -> None:
        await self.delete(key)
        await super().put_new(key, data)


@pytest.fixture
async def attic(make_peer: Any, new_store: Store) -> Agent:
    agent = Agent(await make_peer("Attic"), new_store)
    await run(agent, "group.create", name="Group 1", member="Ada")
    return agent


@pytest.fixture
async def kitchen(make_peer: Any, new_store: Store, attic: Agent) -> Agent:
    agent = Agent(await make_peer("Kitchen"), new_store)
    await let_in(attic, agent, new_member=True, role="admin")
    return agent


async def let_in(inside: Agent, outside: Agent, **invitation: object) -> None:
    invited = await run(inside, "group.invite", **invitation)
    first = await run(outside, "group.join", code=invited["code"], member="Bob", wait_s=0)
    assert (first["state"], first["name"]) == ("waiting", "")
    pending = (await run(inside, "device.list"))["pending"]
    assert [(p["id"], p["name"]) for p in pending] == [(outside.keys.id, outside.name)]
    approved = await run(inside, "device.approve", device=outside.name)
    assert approved["plan"][0]["detail"]["member"] == ("Bob (new)" if invitation.get("new_member") else "Bob")
    joined = await run(outside, "group.join", code=invited["code"], member="Bob", wait_s=30)
    assert (joined["state"], joined["name"]) == ("joined", "Group 1")


async def test_a_group_from_its_creation(attic: Agent) -> None:
    assert [g["name"] for g in (await run(attic, "group.list"))["groups"]] == ["Group 1"]
    shown = await run(attic, "group.show", group="group 1")
    assert [(m["name"], m["role"], m["devices"]) for m in shown["members"]] == [("Ada", "owner", ["Attic"])]
    assert (await run(attic, "status.show"))["groups"][0]["devices"][0]["roles"] == ["host"]
    with pytest.raises(Conflict, match="is taken by another"):
        await run(attic, "group.create", name="GROUP 1")


async def test_joining_as_a_new_member_and_as_one_more_device(
    attic: Agent, kitchen: Agent, make_peer: Any, new_store: Store
) -> None:
    members = (await run(attic, "member.list"))["members"]
    assert [(m["name"], m["role"], m["devices"]) for m in members] == [
        ("Ada", "owner", ["Attic"]),
        ("Bob", "admin", ["Kitchen"]),
    ]
    cellar = Agent(await make_peer("Cellar"), new_store)
    await let_in(kitchen, cellar)
    members = (await run(attic, "member.list"))["members"]
    assert members[1]["devices"] == ["Cellar", "Kitchen"]
    devices = {d["name"]: d["roles"] for d in (await run(attic, "device.list"))["devices"]}
    assert devices == {"Attic": ["host"], "Kitchen": ["host"], "Cellar": ["host"]}


async def test_invitations_are_shown_until_used(attic: Agent) -> None:
    invited = await run(attic, "group.invite", new_member=True, valid_s=120)
    shown = (await run(attic, "group.show"))["invitations"]
    assert [(i["id"], i["expires_ms"]) for i in shown] == [(invited["invitation"], invited["expires_ms"])]
    for bad in ({"valid_s": 1}, {"valid_s": 1e9}, {"role": "admin"}, {"new_member": True, "role": "king"}):
        with pytest.raises(InvalidInput):
            await run(attic, "group.invite", **bad)


@pytest.mark.parametrize("code", ["", "nonsense", "HS1-AAAA", "HS1-" + "A" * 4000])
async def test_a_damaged_code_does_nothing(attic: Agent, code: str) -> None:
    before = attic.facts()
    with pytest.raises(InvalidInput):
        await run(attic, "group.join", code=code, member="Bob", wait_s=0)
    assert attic.facts() == before


async def test_one_cannot_join_twice(attic: Agent, kitchen: Agent) -> None:
    code = (await run(attic, "group.invite"))["code"]
    with pytest.raises(Conflict, match="already"):
        await run(kitchen, "group.join", code=code, wait_s=0)


async def test_devices_are_renamed_and_drained_from_any_device(attic: Agent, kitchen: Agent) -> None:
    await run(kitchen, "device.rename", device="kitchen", name="Scullery")
    await run(attic, "device.drain", device="Scullery", wait_s=5)
    kinds = {d["name"]: d["draining"] for d in (await run(attic, "device.list"))["devices"]}
    assert kinds == {"Attic": False, "Scullery": True}
    assert (await run(attic, "device.drain", device="Scullery"))["done"]
    assert (await run(attic, "device.drain", device="Scullery", wait_s=5))["plan"][:-1] == []
    assert not (await run(attic, "device.drain", device="Scullery", off=True))["draining"]
    with pytest.raises(Conflict, match="is taken by another"):
        await run(attic, "device.rename", device="Scullery", name="ATTIC")
    with pytest.raises(UnknownName, match="did you mean 'Scullery'"):
        await run(attic, "device.rename", device="Sculery", name="x")


async def test_roles_follow_the_rules_of_the_fold(attic: Agent, kitchen: Agent) -> None:
    with pytest.raises(Denied):
        await run_wet(kitchen, "member.role", member="Ada", role="member")
    with pytest.raises(Denied):
        await run_wet(attic, "member.role", member="Ada", role="member")
    await run(attic, "member.role", member="Bob", role="member")
    assert (await run(attic, "member.role", member="Bob", role="member"))["plan"] == []
    with pytest.raises(Denied):
        await run_wet(kitchen, "group.invite", new_member=True)
    with pytest.raises(InvalidInput, match="no role"):
        await run(attic, "member.role", member="Bob", role="king")


async def run_wet(agent: Agent, command: str, /, **values: object) -> None:
    """A change whose plan is well and which the group refuses."""
    await agent.poll()
    one = COMMANDS[command]
    await one.run(agent, parse_params(one.spec, json.dumps(values).encode()), SILENT)


async def test_removing_renews_the_key_and_shuts_out(attic: Agent, kitchen: Agent) -> None:
    removed = await run(attic, "device.remove", device="Kitchen")
    assert removed["key_generation"] == 2
    await kitchen.poll()
    assert next(iter(kitchen.groups.values())).journal.state.left
    with pytest.raises(Denied):
        await run_wet(kitchen, "device.rename", device="Attic", name="x")
    with pytest.raises(Conflict, match="group leave"):
        await run(attic, "device.remove", device="Attic")


async def test_a_member_goes_with_all_devices(attic: Agent, kitchen: Agent) -> None:
    assert (await run(attic, "member.remove", member="bob"))["key_generation"] == 2
    assert [m["name"] for m in (await run(attic, "member.list"))["members"]] == ["Ada"]
    assert [d["name"] for d in (await run(attic, "device.list"))["devices"]] == ["Attic"]
    with pytest.raises(Conflict, match="your own member"):
        await run(attic, "member.remove", member="Ada")


async def test_leaving(attic: Agent, kitchen: Agent) -> None:
    (mine,) = kitchen.groups.values()
    mine.held = ["Radicale"]
    with pytest.raises(Conflict, match=r"Radicale.*--force"):
        await run(kitchen, "group.leave")
    mine.held = []
    await run(kitchen, "group.leave")
    assert mine.erased
    assert kitchen.groups == {}
    assert [d["name"] for d in (await run(attic, "device.list"))["devices"]] == ["Attic"]
    with pytest.raises(Denied, match=r"the group ends here.*--force"):
        await run_wet(attic, "group.leave")
    assert len(attic.groups) == 1
    await run(attic, "group.leave", force=True)
    assert (await run(attic, "group.list"))["groups"] == []
    with pytest.raises(NotFound, match="group create"):
        await run(attic, "device.list")


async def test_stores(attic: Agent) -> None:
    added = await run(attic, "store.add", name="Shelf", backend="memory", config={"api_token": "hunter2"})
    assert added["fencing"]
    listed = (await run(attic, "store.list"))["stores"]
    assert [(s["name"], s["config"], s["apps"]) for s in listed] == [("Shelf", {"api_token": "***"}, [])]
    checked = await run(attic, "store.check", store="shelf")
    assert [s["step"] for s in checked["steps"] if not s["ok"]] == []
    assert "hunter2" not in json.dumps(await run(attic, "log.show"))
    with pytest.raises(Conflict, match="is taken by another"):
        await run(attic, "store.add", name="SHELF", backend="memory")
    with pytest.raises(NotInstalled):
        await run(attic, "store.add", name="Other", backend="tape")
    await run(attic, "store.remove", store="Shelf")
    assert (await run(attic, "store.list"))["stores"] == []


async def test_a_store_that_overwrites_is_not_added(make_peer: Any) -> None:
    attic = Agent(await make_peer("Attic"), Overwriting(MemoryStoreConfig(objects=MemoryObjects())))
    await run(attic, "group.create", name="Group 1")
    with pytest.raises(BackendError, match="cannot fence"):
        await run_wet(attic, "store.add", name="Shelf", backend="memory")
    assert (await run(attic, "store.list"))["stores"] == []


async def test_gateways(attic: Agent, kitchen: Agent) -> None:
    await run(attic, "gateway.add", device="Attic", address="home.example.org")
    assert (await run(attic, "gateway.add", device="Attic"))["plan"] == []
    assert [(g["name"], g["address"], g["up"]) for g in (await run(kitchen, "gateway.list"))["gateways"]] == [
        ("Attic", "home.example.org", False)
    ]
    findings = (await run(attic, "doctor.run"))["findings"]
    assert any("no route to host" in f["what"] and f["check"] == "Group 1: gateways" for f in findings)
    await run(attic, "gateway.remove", device="Attic")
    assert (await run(attic, "gateway.list"))["gateways"] == []
    with pytest.raises(InvalidInput, match="no gateway"):
        await run(attic, "gateway.remove", device="Attic")
    with pytest.raises(InvalidInput, match="no host name"):
        await run(attic, "gateway.add", device="Attic", address="two words")


async def test_the_log_is_shown_without_keys(attic: Agent, kitchen: Agent) -> None:
    entries = (await run(attic, "log.show", tail=0))["entries"]
    assert [e["position"] for e in entries] == list(range(1, len(entries) + 1))
    assert entries[0]["kind"] == "group.created"
    assert entries[0]["author"] == "Attic"
    assert len((await run(attic, "log.show", tail=2))["entries"]) == 2
    with pytest.raises(InvalidInput):
        await run(attic, "log.show", tail=-1)


async def test_doctor_says_that_there_is_no_store(attic: Agent) -> None:
    result = await run(attic, "doctor.run")
    assert "guard" in result["checks"]
    assert [f["what"] for f in result["findings"]] == ["the group has no store"]


async def test_doctor_asks_a_gateway_for_no_way_to_a_store(attic: Agent) -> None:
    """It has no use for one: what keeps it out of a store is no fault."""
    journal = next(iter(attic.groups.values())).journal
    await journal.append(DeviceUpdated(device=attic.keys.id, roles=frozenset({DeviceRole.GATEWAY})))
    assert [f for f in (await run(attic, "doctor.run"))["findings"] if "store" in f["what"]] == []


async def test_joining_waits_until_somebody_approves(attic: Agent, make_peer: Any, new_store: Store) -> None:
    garage = Agent(await make_peer("Garage"), new_store)
    code = (await run(attic, "group.invite", new_member=True))["code"]
    joining = asyncio.ensure_future(run_join(garage, code))
    async with asyncio.timeout(60):
        while not (await run(attic, "device.list"))["pending"]:
            await asyncio.sleep(0.05)
        await run(attic, "device.approve", device="Garage", name="Old garage")
        assert (await joining)["state"] == "joined"
    await attic.poll()
    assert {d["name"] for d in (await run(attic, "device.list"))["devices"]} == {"Attic", "Old garage"}


async def run_join(agent: Agent, code: str) -> dict[str, Any]:
    one = COMMANDS["group.join"]
    body = json.dumps({"code": code, "member": "Cleo", "wait_s": 60}).encode()
    return dict(await one.run(agent, parse_params(one.spec, body), SILENT))


def test_route_names(tmp_path: Path) -> None:
    from fractal.api.transport import RouteKind

    assert route.route_name("Cal.Example.ORG.", RouteKind.HTTPS) == "cal.example.org"
    assert route.route_name("bücher.example", RouteKind.HTTPS) == "xn--bcher-kva.example"
    assert route.route_name(":02222", RouteKind.TCP) == ":2222"
    for bad in ("", "localhost", "a..b", "-a.b", "a_b.c", "a.b/c", "x" * 64 + ".org", "a.b\nc", "*.a.b"):
        with pytest.raises(InvalidInput):
            route.route_name(bad, RouteKind.HTTPS)
    for bad in ("", ":0", ":65536", ":x", "22:", "::1"):
        with pytest.raises(InvalidInput):
            route.route_name(bad, RouteKind.UDP)


def test_a_log_line_is_short_and_without_secrets() -> None:
    body = {
        "name": "Cal\n" + "x" * 100,
        "device": {"name": "Attic", "box_key": "hunter2"},
        "policy": {"interval": 1, "key": "hunter2"},
        "secrets": {"A": "hunter2"},
        "list": [{"config": "hunter2"}],
        "empty": "",
    }
    line = log.summary(body)
    assert "hunter2" not in line
    assert "device=Attic" in line
    assert 'policy={"interval": 1}' in line
    assert "\n" not in line
    assert len(line) < 200
    assert log.summary(None) == ""
