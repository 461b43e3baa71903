"""The guard's socket: strangers are refused, garbage changes nothing."""

from __future__ import annotations

import json
import os
import socket
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fractal.api.runtime import Freezable
from fractal.guard.client import GuardClient
from fractal.guard.service import Order
from fractal.guard.wire import BadMessageError, decode

Bench = Any  # the fixtures' classes live in conftest.py, which cannot be imported by name

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


async def test_only_the_owner_can_reach_the_socket(bench: Bench, guard: GuardClient) -> None:
    assert stat.S_IMODE(guard.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(bench.folder.stat().st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
async def test_another_user_is_refused_even_if_the_file_is_open(
    bench: Bench, guard: GuardClient, tmp_path: Path
) -> None:
    await guard.ping()
    for path in (tmp_path, *tmp_path.parents):
        if path.owner() == "root" and path != Path("/") and path != Path("/tmp"):
            path.chmod(path.stat().st_mode | 0o011)
    bench.folder.chmod(0o755)
    guard.path.chmod(0o666)
    source = (
        "import os, socket, sys\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "end = socket.socket(socket.AF_UNIX)\n"
        "end.settimeout(20)\n"
        "end.connect(sys.argv[1])\n"
        'end.sendall(b\'{"op": "ping"}\\n\')\n'
        "print(len(end.recv(100)))\n"
    )
    done = await bench.run([sys.executable, "-S", "-c", source, str(guard.path)], check=False)
    # Closed without a word; with the request unread the kernel says so as a reset.
    assert (
        done.stdout.strip() == b"0" or b"ConnectionResetError" in done.stderr or b"BrokenPipe" in done.stderr
    )
    await guard.ping()


def exchange(path: Path, data: bytes) -> list[Any]:
    """What the guard answers to these bytes, until it closes or we have."""
    folder = os.open(path.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as end:
        end.settimeout(20)
        end.connect(f"/proc/self/fd/{folder}/{path.name}")
        os.close(folder)
        try:
            end.sendall(data)
            end.shutdown(socket.SHUT_WR)
        except OSError:
            return []
        answer = b""
        try:
            while chunk := end.recv(1 << 16):
                answer += chunk
        except ConnectionResetError:
            pass
    return [json.loads(line) for line in answer.splitlines()]


NONSENSE = [
    b"\n",
    b"\x00\xff\xfe\n",
    b"[1, 2]\n",
    b'{"op": "nonsense"}\n',
    b'{"op": ["ping"]}\n',
    b'{"op": "grant", "runs": {"g.a.1": 1e999}}\n',
    b'{"op": "grant", "runs": {"g.a.1": true}}\n',
    b'{"op": "grant", "runs": [1]}\n',
    b'{"op": "freeze"}\n',
    b'{"op": "freeze", "run": "g.a.1", "final": "yes"}\n',
    b'{"op": "register", "run": "x", "cgroup": "/etc"}\n',
    b'{"op": "register", "run": "x", "cgroup": "/sys/fs/cgroup/../../etc"}\n',
    b'{"op": "register", "run": ""}\n',
    b'{"op": "spawn", "run": "g.a.1"}\n',
    b'{"op": "spawn", "run": "g.a.1", "service": "x", "argv": ["a\\u0000b"], "cwd": "/", "log": "/x"}\n',
    b'{"op": "spawn", "run": "g.a.1", "service": "x", "argv": ["true"], "cwd": ".", "log": "x"}\n',
    b'{"op": "spawn", "run": "g.a.1", "service": "x", "argv": ["\\ud800"], "cwd": "/", "log": "/x"}\n',
    b'{"op": "signal", "run": "g.a.1", "service": "x", "signal": "SIGCONT"}\n',
    b'{"op": "signal", "run": "g.a.1", "service": "x", "signal": "SIGSTOP"}\n',
    b"[" * 100_000 + b"\n",
    b'{"op": "ping", "x": "' + b"a" * (2 << 20) + b'"}\n',
]


async def test_nonsense_is_refused_and_changes_nothing(bench: Bench, guard: GuardClient) -> None:
    await guard.register(Freezable(run="g.a.1"))
    before = await guard.status()
    for data in NONSENSE:
        assert all("error" in answer for answer in exchange(guard.path, data)), data[:100]
        assert await guard.status() == before, data[:100]


async def test_many_silent_connections_do_not_lock_the_agent_out(bench: Bench, guard: GuardClient) -> None:
    await guard.ping()
    ends = [socket.socket(socket.AF_UNIX) for _ in range(50)]
    folder = os.open(guard.path.parent, os.O_RDONLY)
    try:
        for end in ends:
            end.settimeout(20)
            end.connect(f"/proc/self/fd/{folder}/{guard.path.name}")
        await guard.ping()
    finally:
        os.close(folder)
        for end in ends:
            end.close()
    async with await bench.ensure() as other:
        await other.ping()


async def test_a_program_that_is_not_there_is_an_error_that_names_it(
    bench: Bench, guard: GuardClient
) -> None:
    from dataclasses import replace

    from fractal.api.errors import BackendError

    await guard.register(Freezable(run="g.a.1"))
    await guard.grant({"g.a.1": bench.now() + 60})
    request = replace(bench.request(bench.family()), argv=("/nonexistent/program",))
    with pytest.raises(BackendError, match="/nonexistent/program"):
        await guard.spawn(request)


@given(st.binary(max_size=200) | JSON.map(lambda v: json.dumps(v).encode()))
def test_any_line_is_a_message_or_refused(line: bytes) -> None:
    try:
        assert isinstance(decode(line), dict)
    except BadMessageError as error:
        assert str(error)


@given(
    st.dictionaries(
        st.sampled_from(["run", "service", "argv", "cwd", "log", "stdin", "env", "limits"]),
        JSON | st.sampled_from(["/tmp", "x", ["true"], {"A": "b"}, {"memory": 5}]),
    )
)
@settings(max_examples=300)
def test_any_order_is_understood_or_refused(message: dict[str, Any]) -> None:
    try:
        order = Order.parse(message)
    except BadMessageError as error:
        assert str(error)
    else:
        assert order.argv
        assert order.cwd.startswith("/")
