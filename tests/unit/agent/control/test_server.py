"""The control server over its real socket: whatever is sent, the answer is a clean line and nothing is half done."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fractal.agent.contexts import Contexts
from fractal.agent.control.contract import Kind, Param, Spec, changes, reads
from fractal.agent.control.dispatch import Command
from fractal.agent.control.params import Params
from fractal.agent.control.plan import Action, Plan, plan
from fractal.agent.control.progress import Progress
from fractal.agent.control.server import MAX_BODY, QUEUE, open_control
from fractal.api.errors import Conflict, ExitCode, Misconfigured, NotFound, Unreachable
from fractal.client import Client, CommandError
from fractal.shell.clock import SystemClock
from fractal.shell.entropy import SystemEntropy


class World:
    """What the test's commands change."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.started = asyncio.Event()
        self.ended = asyncio.Event()
        self.gate = asyncio.Event()


async def echo(_world: World, params: Params, progress: Progress) -> dict[str, Any]:
    progress.say("echoing")
    return {"name": params.text("name"), "number": params.number("number")}


async def stream(_world: World, _params: Params, progress: Progress) -> dict[str, Any]:
    for number in range(3 * QUEUE):
        await progress.output({"number": number})
    return {}


async def fail(_world: World, _params: Params, _progress: Progress) -> dict[str, Any]:
    raise Conflict("store 'Shelf': it is there already")


async def crash(_world: World, _params: Params, _progress: Progress) -> dict[str, Any]:
    return {"secret": dict[str, str]()["hunter2"]}


async def add(world: World, params: Params, _progress: Progress) -> Plan:
    name = params.text("name")

    async def do(_: Progress) -> None:
        world.started.set()
        await world.gate.wait()
        world.names.append(name)
        world.ended.set()

    return plan(Action(f"Add {name}", {"name": name}, do), result={"name": name})


async def hang(world: World, _params: Params, _progress: Progress) -> dict[str, Any]:
    world.started.set()
    try:
        await asyncio.Event().wait()
    finally:
        world.ended.set()
    return {}


NAME = {"name": Param(Kind.TEXT, "", required=True)}
COMMANDS = {
    command.spec.name: command
    for command in (
        Command(reads("x.echo", "", {**NAME, "number": Param(Kind.NUMBER, "")}, group=False), echo),
        Command(reads("x.stream", "", group=False), stream),
        Command(reads("x.fail", "", group=False), fail),
        Command(reads("x.crash", "", group=False), crash),
        Command(changes("x.add", "", NAME, group=False), add),
        Command(reads("x.hang", "", group=False), hang),
        Command(Spec(name="x.liar", summary="", changes=True), echo),
    )
}


@asynccontextmanager
async def serving(folder: Path, **options: Any) -> AsyncIterator[tuple[World, Path]]:
    world, socket = World(), folder / "s"
    world.gate.set()
    async with open_control(socket, world, COMMANDS, **options):
        yield world, socket


async def call(socket: Path, command: str, params: dict[str, object] | None = None, **options: Any) -> Any:
    return await asyncio.to_thread(Client(socket).call, command, params, **options)


async def raw(socket: Path, data: bytes, *, whole: bool = True) -> bytes:
    """Send bytes, hang up if they are not a `whole` request, return all that comes back."""
    reader, writer = await asyncio.open_unix_connection(str(socket))
    try:
        writer.write(data)
        if not whole:
            writer.write_eof()
        async with asyncio.timeout(30):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


def request(body: bytes, path: str = "/v1/x/add", head: str = "") -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {len(body)}\r\n{head}\r\n".encode()
        + body
    )


async def test_result_progress_and_socket_mode(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, socket):
        assert stat.S_IMODE(socket.stat().st_mode) == 0o600
        told: list[Any] = []
        result = await call(socket, "x.echo", {"name": "Attic é", "number": None}, on_progress=told.append)
        assert result == {"name": "Attic é", "number": 0.0}
        assert told == [{"text": "echoing"}]
    assert not socket.exists()


async def test_streamed_output_is_complete_and_in_order(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, socket):
        seen: list[Any] = []
        await call(socket, "x.stream", on_output=seen.append)
    assert [record["number"] for record in seen] == list(range(3 * QUEUE))


async def test_expected_error_keeps_its_code(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, socket):
        with pytest.raises(CommandError, match="Shelf") as caught:
            await call(socket, "x.fail")
    assert (caught.value.code, caught.value.exit_code) == ("conflict", ExitCode.CONFLICT)


async def test_a_bug_is_told_without_its_particulars(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path) as (_, socket):
        with pytest.raises(CommandError, match="KeyError") as caught:
            await call(socket, "x.crash")
        assert caught.value.code == "internal"
        assert "hunter2" not in str(caught.value)
        assert "hunter2" in caplog.text
        assert await call(socket, "x.echo", {"name": "still there"})


async def test_dry_run_changes_nothing_and_shows_the_plan_that_runs(tmp_path: Path) -> None:
    async with serving(tmp_path) as (world, socket):
        dry = await call(socket, "x.add", {"name": "n", "dry_run": True})
        assert world.names == []
        done = await call(socket, "x.add", {"name": "n"})
        assert world.names == ["n"]
    assert dry == {"dry_run": True, "plan": [{"what": "Add n", "detail": {"name": "n"}}]}
    assert done == {**dry, "dry_run": False, "name": "n"}


async def test_a_changing_handler_must_plan(tmp_path: Path) -> None:
    liar = Command(changes("x.liar", "", NAME, group=False), echo)
    async with open_control(tmp_path / "s", World(), {"x.liar": liar}):
        with pytest.raises(CommandError, match="bug"):
            await call(tmp_path / "s", "x.liar", {"name": "n", "dry_run": True})


async def test_unknown_command_and_unknown_paths(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, socket):
        with pytest.raises(CommandError, match=r"knows no command 'x\.nothing'"):
            await call(socket, "x.nothing")
        for path in ("/", "/v1", "/v1/x", "/v1/x/echo/more", "/v2/x/echo", "/v1//echo", "/v1/x/../x/echo"):
            answer = await raw(socket, request(b'{"name":"n"}', path))
            assert json.loads(answer.split(b"\r\n\r\n", 1)[1])["error"]["code"] == "not_found", path
        answer = await raw(socket, b"GET /v1/x/echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert b'"not_found"' in answer


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "name is missing"),
        (b"[]", "not a JSON object"),
        (b"nonsense", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b'{"name":"n"', "not JSON"),
        (b'{"name":1}', "must be text"),
        (b'{"name":"n","nmae":"m"}', "unknown parameter 'nmae'"),
        (b'{"name":"n","name":"m"}', "twice"),
        (b'{"name":"n","dry_run":"no"}', "must be flag"),
        (b'{"name":"n\\u0000"}', "not text"),
        (b'{"name":"\\ud800"}', "not text"),
        (b"[" * 100_000, "not JSON"),
        (b'{"name":"' + b"n" * (MAX_BODY // 2) + b'"}', "longer than"),
        (b'{"name":"' + b"n" * MAX_BODY + b'"}', "larger than"),
    ],
)
async def test_a_bad_body_is_refused_before_anything_is_done(
    tmp_path: Path, body: bytes, message: str
) -> None:
    async with serving(tmp_path) as (world, socket):
        answer = await raw(socket, request(body))
        error = json.loads(answer.split(b"\r\n\r\n", 1)[1])["error"]
        assert message in error["message"]
        assert error["exit_code"] == ExitCode.USAGE
        assert b"Traceback" not in answer
        assert world.names == []


async def test_a_body_that_breaks_off_does_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path) as (world, socket):
        whole = request(b'{"name":"n"}')
        for end in range(0, len(whole) - 1, 3):
            assert b"Traceback" not in await raw(socket, whole[:end], whole=False)
        assert world.names == []
        assert await call(socket, "x.add", {"name": "after"})
        assert world.names == ["after"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.one_of(
        st.binary(max_size=300),
        st.binary(max_size=200).map(request),
        st.binary(max_size=60).map(lambda b: b"POST /v1/x/add HTTP/1.1\r\n" + b + b"\r\n\r\n"),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(["name", "dry_run", "x"]), inner, max_size=3)
            ),
            max_leaves=8,
        ).map(lambda v: request(json.dumps(v).encode())),
    )
)
def test_foreign_bytes_never_hurt(tmp_path: Path, data: bytes) -> None:
    async def attempt() -> None:
        async with serving(tmp_path) as (world, socket):
            answer = await raw(socket, data, whole=data.startswith(b"POST /v1/x/add HTTP/1.1\r\nHost"))
            assert b"Traceback" not in answer
            head, _, body = answer.partition(b"\r\n\r\n")
            if world.names or b"200 OK" in head:
                assert b'{"result":' in body
            assert (await call(socket, "x.echo", {"name": "alive"}))["name"] == "alive"

    asyncio.run(attempt())


async def test_strangers_are_refused(tmp_path: Path) -> None:
    async with serving(tmp_path, uids=frozenset({os.getuid() + 1})) as (world, socket):
        with pytest.raises(CommandError, match="may not control this agent") as caught:
            await call(socket, "x.add", {"name": "n"})
        assert caught.value.exit_code == ExitCode.DENIED
        assert world.names == []


async def test_a_reader_that_hangs_up_ends_its_command(tmp_path: Path) -> None:
    async with serving(tmp_path) as (world, socket):
        _, writer = await asyncio.open_unix_connection(str(socket))
        writer.write(request(b"{}", "/v1/x/hang"))
        async with asyncio.timeout(30):
            await world.started.wait()
            writer.close()
            await world.ended.wait()


async def test_a_change_goes_on_when_its_caller_hangs_up(tmp_path: Path) -> None:
    async with serving(tmp_path) as (world, socket):
        world.gate.clear()
        _, writer = await asyncio.open_unix_connection(str(socket))
        writer.write(request(b'{"name":"n"}'))
        async with asyncio.timeout(30):
            await world.started.wait()
            writer.close()
            await call(socket, "x.echo", {"name": "the server has seen the end by now"})
            world.gate.set()
            await world.ended.wait()
        assert world.names == ["n"]


async def test_a_stopping_server_ends_its_commands_and_says_so(tmp_path: Path) -> None:
    async with serving(tmp_path) as (world, socket):
        waiting = asyncio.ensure_future(call(socket, "x.hang"))
        async with asyncio.timeout(30):
            await world.started.wait()
    with pytest.raises((CommandError, Unreachable)):
        await waiting
    assert world.ended.is_set()


async def test_socket_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="at most 107"):
        async with open_control(tmp_path / ("s" * 120), World(), COMMANDS):
            pass
    with pytest.raises(Misconfigured, match="cannot listen"):
        async with open_control(tmp_path / "absent" / "s", World(), COMMANDS):
            pass


async def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    import socket as sockets

    left = sockets.socket(sockets.AF_UNIX)
    left.bind(str(tmp_path / "s"))
    left.close()
    async with serving(tmp_path) as (_, socket):
        assert await call(socket, "x.echo", {"name": "n"})


class Threads:
    """Workers that are none."""

    async def run(self, function: Any, *arguments: Any) -> Any:
        return function(*arguments)


@pytest.fixture
def contexts(tmp_path: Path) -> Contexts:
    (tmp_path / "contexts").mkdir()
    (tmp_path / "contexts" / "left.tar").write_bytes(b"of an agent that was killed")
    return Contexts(tmp_path / "contexts", SystemClock(), SystemEntropy(), Threads())


async def test_a_build_context_is_kept_until_it_is_taken(tmp_path: Path, contexts: Contexts) -> None:
    data, folder = os.urandom(3 << 20), tmp_path / "contexts"
    assert not list(folder.iterdir())
    async with serving(tmp_path, contexts=contexts) as (_, socket):
        name = await sent(socket, tmp_path, data)
    (kept,) = folder.iterdir()
    assert (stat.S_IMODE(kept.stat().st_mode), kept.read_bytes() == data) == (0o600, True)
    async with contexts.taken(name) as (size, read):
        assert (size, b"".join([chunk async for chunk in read()]) == data) == (len(data), True)
    assert not list(folder.iterdir())
    for gone in (name, "", "../x"):
        with pytest.raises(NotFound):
            async with contexts.taken(gone):
                pass


async def test_a_build_context_that_is_too_large_or_breaks_off_leaves_nothing(
    tmp_path: Path, contexts: Contexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fractal.agent.contexts.MAX_ARCHIVE", 1 << 20)
    data = bytes(5 << 20)
    async with serving(tmp_path, contexts=contexts) as (_, socket):
        with pytest.raises(CommandError, match="larger than 1048576 bytes"):
            await sent(socket, tmp_path, data)
        reader, writer = await asyncio.open_unix_connection(str(socket))
        writer.write(b"POST /v1/app/context HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nbegin")
        await writer.drain()
        writer.close()
        assert await raw(socket, request(b"{}", path="/v1/app/other"))
        async with asyncio.timeout(30):
            while list((tmp_path / "contexts").iterdir()):
                await asyncio.sleep(0.02)
    del reader


async def sent(socket: Path, folder: Path, data: bytes) -> str:
    (folder / "archive").write_bytes(data)
    with (folder / "archive").open("rb") as archive:
        return await asyncio.to_thread(Client(socket).send_context, archive, len(data))
