"""The network: a bridge that is "the internet", machines on it, and homes whose routers let only outgoing traffic out."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tests.stack.real.machine import Machine

PUBLIC = "203.0.113"
"""Documentation addresses (RFC 5737): nobody has them."""
LAN = "192.168.1"
"""The same in every home, as in life."""
ROUTER = """
table inet router {
  chain forward {
    type filter hook forward priority 0; policy drop;
    ct state established,related accept
    ct status dnat accept
    iifname "lan0" oifname "wan0" accept
  }
  chain into {
    type nat hook prerouting priority -100;
  }
  chain input {
    type filter hook input priority 0; policy drop;
    ct state established,related accept
    iifname { "lo", "lan0" } accept
  }
  chain out {
    type nat hook postrouting priority 100;
    oifname "wan0" masquerade
  }
}
"""


@dataclass
class Network:
    """All of it. Machines are made here and booted by whoever wants them."""

    folder: Path
    machines: list[Machine] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)
    """Host name -> address, the same for all machines."""
    authorities: Path | None = None
    """Bundle of certificates that machines made from now on trust."""
    _ports: int = 0
    _addresses: dict[int, int] = field(default_factory=dict)
    _far: dict[int, str] = field(default_factory=dict)
    """Machine -> its port at the internet's end."""
    _public: int = 10

    def __post_init__(self) -> None:
        self.hosts.write_text("127.0.0.1 localhost\n")
        self.internet = self.machine("Internet")
        self.internet.on_boot.append(
            lambda: _ip(self.internet, "link add br0 type bridge", "link set br0 up")
        )
        self.internet.boot()

    @property
    def hosts(self) -> Path:
        """What every machine has as /etc/hosts."""
        return self.folder / "hosts"

    def name(self, host: str, address: str) -> None:
        """Give a name an address, or another one; takes effect at once."""
        self.names[host] = address
        lines = ["127.0.0.1 localhost", *(f"{a} {n}" for n, a in sorted(self.names.items()))]
        # In place: a bind mount holds the file, not its name.
        with self.hosts.open("r+") as file:
            file.write("\n".join(lines) + "\n")
            file.truncate()

    def machine(self, name: str) -> Machine:
        """A machine without a cable."""
        made = Machine(name, self.folder / name.lower().replace(" ", "-"), self.hosts, self.authorities)
        self.machines.append(made)
        return made

    def public(self, name: str, *hosts: str) -> Machine:
        """A machine with a public address, and names for it; it runs."""
        machine = self.machine(name)
        address = self._attach(machine, "eth0")
        for host in hosts:
            self.name(host, address)
        machine.boot()
        return machine

    def at_home(self, name: str) -> Home:
        """A machine behind a router that lets nothing in; both run."""
        router = self.machine(f"{name} router")
        self._attach(router, "wan0")
        router.on_boot.append(lambda: _forward(router))
        router.boot()
        home = Home(self.machine(name), router)
        home.machine.on_boot.append(home.lay)
        home.machine.boot()
        return home

    def address(self, machine: Machine) -> str:
        """A machine's public address."""
        return f"{PUBLIC}.{self._addresses[id(machine)]}"

    def unplug(self, machine: Machine) -> None:
        """Cut a public machine off."""
        _ip(self.internet, f"link set {self._far[id(machine)]} down")

    def plug(self, machine: Machine) -> None:
        """Have it reached again."""
        _ip(self.internet, f"link set {self._far[id(machine)]} up")

    def _attach(self, machine: Machine, port: str) -> str:
        """Whenever it boots: a cable to the internet, with an address that it keeps."""
        self._public += 1
        self._addresses[id(machine)] = self._public
        address = f"{PUBLIC}.{self._public}"
        machine.on_boot.append(partial(self._plug, machine, port, address))
        return address

    def _plug(self, machine: Machine, port: str, address: str) -> None:
        self._ports += 1
        far = self._far[id(machine)] = f"port{self._ports}"
        _veth(machine, port, self.internet, far)
        _ip(self.internet, f"link set {far} master br0", f"link set {far} up")
        _ip(machine, f"addr add {address}/24 dev {port}", f"link set {port} up")


@dataclass
class Home:
    """A machine and the router before it."""

    machine: Machine
    router: Machine

    def lay(self) -> None:
        """The cable between the two. The kernel takes a former one away in its own time."""
        self.router.run("ip", "link", "delete", "lan0", check=False)
        _veth(self.machine, "eth0", self.router, "lan0")
        _ip(self.router, f"addr add {LAN}.1/24 dev lan0", "link set lan0 up")
        _ip(
            self.machine,
            f"addr add {LAN}.2/24 dev eth0",
            "link set eth0 up",
            f"route add default via {LAN}.1",
        )

    def pull(self) -> None:
        """Pull the cable: no carrier on either end."""
        _ip(self.router, "link set lan0 down")

    def put_back(self) -> None:
        """Plug it in again."""
        _ip(self.router, "link set lan0 up")

    def let_in(self, port: int) -> None:
        """Forward a port, TCP and UDP, as people do in their router's web page."""
        for protocol in ("tcp", "udp"):
            rule = (
                f'add rule inet router into iifname "wan0" {protocol} dport {port} dnat ip to {LAN}.2:{port}'
            )
            self.router.run("nft", rule)

    def new_address(self, address: str) -> None:
        """The provider gives the home another public address."""
        _ip(self.router, "addr flush dev wan0", f"addr add {address}/24 dev wan0")


def _veth(near: Machine, name: str, far: Machine, far_name: str) -> None:
    """A cable. It is made from outside, where both machines' pids mean something, and never lies outside."""
    words = f"ip link add name {name} netns {near.init} type veth peer name {far_name} netns {far.init}"
    subprocess.run(words.split(), check=True, timeout=30)


def _forward(router: Machine) -> None:
    router.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
    router.run("nft", "-f", "-", stdin=ROUTER.encode())


def _ip(machine: Machine, *commands: str) -> None:
    """Several `ip` commands at once; the first that fails ends it."""
    machine.run("ip", "-batch", "-", stdin="\n".join(commands).encode() + b"\n")
