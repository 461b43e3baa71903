"""The whole way to an app through a gateway against the bare tunnel, in the same namespaces in the same run; and how fast a route moves.

    sudo .venv/bin/python contrib/bench/wireguard.py [--megabytes N] [--rounds N]

Bare: curl on the gateway fetches over plain HTTP from a server on the home's end of the tunnel: WireGuard and nothing else. Whole: curl on
"the internet" fetches the same bytes by TLS through HAProxy on the gateway, tunnel, NAT, and HAProxy at home. Both end in the same server.
Each round runs both, so that what else the machine does hits both; medians are shown. All ends share this machine's cores.

Needs root, and Debian's haproxy, wireguard-go, wireguard-tools, nftables, iproute2, curl.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from fractal_wireguard.addresses import interface_name, of_app
from fractal_wireguard.testing import (
    Streets,
    WireguardBed,
    missing,
    stream,
    streets,
    wireguard_bed,
    wireguard_town,
)

from fractal.testing.transport_parts import GROUP, Town

GOAL = 0.9
# A server that does little besides sending, at the given address; prints its port.
SERVER = """
import socket, sys, threading
size = int(sys.argv[2])
piece = bytes(1 << 18)
listening = socket.create_server((sys.argv[1], 0), family=socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET)
print(listening.getsockname()[1], flush=True)
def serve(sock):
    with sock:
        got = b""
        while b"\\r\\n\\r\\n" not in got:
            got += sock.recv(65536)
        sock.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\nConnection: close\\r\\n\\r\\n" % size)
        for _ in range(size // len(piece)):
            sock.sendall(piece)
while True:
    threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()
"""


async def output(streets_: Streets, role: str, *argv: str) -> str:
    """What a command in a namespace prints."""
    process = await asyncio.create_subprocess_exec(
        "nsenter", f"--net=/run/netns/{streets_.names[role]}", *argv, stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(120):
        text, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"{' '.join(argv[:3])}: status {process.returncode}")
    return text.decode()


@contextlib.asynccontextmanager
async def server(streets_: Streets, role: str, host: str, size: int) -> AsyncIterator[int]:
    """The server in a namespace; its port."""
    process = await asyncio.create_subprocess_exec(
        *(
            "nsenter",
            f"--net=/run/netns/{streets_.names[role]}",
            sys.executable,
            "-c",
            SERVER,
            host,
            str(size),
        ),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        yield int(await process.stdout.readline())
    finally:
        process.kill()
        await process.wait()


async def fetched(streets_: Streets, role: str, *options: str) -> float:
    """Mbit/s of one download."""
    words = [
        "curl",
        "-sS",
        "--insecure",
        "--output",
        "/dev/null",
        "--write-out",
        "%{speed_download}",
        *options,
    ]
    return float(await output(streets_, role, *words)) * 8 / 1e6


async def throughput(town: Town, bed: WireguardBed, size: int, rounds: int) -> list[tuple[float, float]]:
    """(bare, whole) of each round."""
    home, name = of_app(GROUP, "app0").v6, town.names[0]
    async with (
        server(bed.streets, "homea", home, size) as near,
        server(bed.streets, "homea", "127.0.0.1", size) as inner,
    ):
        table = f"fractal_{interface_name(town.ids[0])}"
        route = town.web_route(0, inner)
        await town.serve(0, [dataclasses.replace(route, host="127.0.0.1")])
        # The device's packet filter lets the gateway reach nothing else: opened for the comparison.
        bed.streets.run("homea", *f"nft insert rule inet {table} tunnel tcp dport {near} accept".split())
        bare = f"http://[{home}]:{near}/"
        whole = ("--resolve", f"{name}:443:{bed.https[0]}", f"https://{name}/")
        await fetched(bed.streets, "gateway", bare)
        await fetched(bed.streets, "client", *whole)
        return [
            (await fetched(bed.streets, "gateway", bare), await fetched(bed.streets, "client", *whole))
            for _ in range(rounds)
        ]


async def switches(town: Town, rounds: int) -> list[tuple[float, float, int, int]]:
    """(seconds of the call, seconds to the first request that the new device answered, failed, asked) of unplanned switches."""
    loop = asyncio.get_running_loop()
    found = []
    await town.serve(0, town.routes(0))
    await town.serve(1, [*town.routes(1), town.web_route(0, town.apps[1].port)])
    for number in range(rounds):
        await town.forward(town.target(0, town.ids[0], epoch=2 * number))
        await asyncio.sleep(1)
        async with stream(town, 1 / 60) as seen:
            await asyncio.sleep(1)
            before = loop.time()
            await town.forward(town.target(0, town.ids[1], epoch=2 * number + 1))
            called = loop.time() - before
            await asyncio.sleep(1)
        first = min(end for start, end, what in seen.answers if what == "second" and start > before)
        found.append((called, first - before, len(seen.failed), len(seen.answers)))
    return found


async def main(megabytes: int, rounds: int) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(prefix="fractal-bench-") as folder, streets() as made:
        async with wireguard_bed(Path(folder), made) as bed, wireguard_town(bed) as town:
            figures = await throughput(town, bed, megabytes << 20, rounds)
            moves = await switches(town, rounds)
    bare, whole = (statistics.median(column) for column in zip(*figures, strict=True))
    ratio = statistics.median(w / b for b, w in figures)
    print(f"bare tunnel               {bare:7.0f} Mbit/s (median of {rounds} downloads of {megabytes} MiB)")
    print(f"whole way                 {whole:7.0f} Mbit/s")
    print(f"whole / bare              {ratio:7.2f}  (goal: {GOAL})")
    calls, firsts, failed, asked = (list(column) for column in zip(*moves, strict=True))
    print(
        f"switch of a running app   {1000 * statistics.median(calls):7.0f} ms for the call (median of {rounds})"
    )
    print(f"  new device answers      {1000 * statistics.median(firsts):7.0f} ms after its beginning")
    print(f"  requests lost           {sum(failed)} of {sum(asked)}, each under way on the old device")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if reason := missing():
        print(f"not measured: {reason}")
    else:
        asyncio.run(main(options.megabytes, options.rounds))
