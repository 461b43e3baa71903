"""Commands about another device: asked and answered in small sealed messages over the coordinator's signal channel.

A question is sealed to the asked device's box key and signed by the asking device. It names the nonce that the asked agent
tells in its signals, which is new with each of its runs, and a number of its own that is answered once: a message that
somebody recorded means nothing later. Bulk data never travels this way.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fractal.agent import fork_key
from fractal.agent.control.progress import Progress
from fractal.api.canonical import decode, encode, pack, unpack
from fractal.api.errors import Corrupt, Denied, ExitCode, FractalError, InvalidInput, NotFound, Unreachable
from fractal.core.model import Role
from fractal.crypto.keys import seal_to, statement, verify

if TYPE_CHECKING:
    from fractal.agent.group import GroupAgent

MAGIC = b"fhs-ask1"
ANSWER_LIMIT = 90.0
"""Seconds to wait for an answer."""
LARGEST = 20_000
"""Bytes of an answer's texts; more is cut at its beginning, which is the older part of a log."""
REMEMBERED = 10_000
"""Numbers of questions that are kept; then a new nonce makes all of them worthless at once."""
AT_ONCE = 3
"""Questions of one device that are answered at the same time, ..."""
AT_ONCE_ALL = 8
"""... and of all devices: whoever asks more is told to wait, so that nobody's questions cost a device its health."""
DROPPED = 64
"""Beyond so many under way, also being told is too much."""
ALLOWED = frozenset(
    {"app.logs", "app.exec", "snapshot.create", "snapshot.prune", "snapshot.repair", "snapshot.verify"}
)
"""Only what acts on the app where it runs. Nothing that is written to the log, which would be in the asked device's name.

Beside these, any device that holds an app's key is asked for the key of a fork (`fork_key`).
"""


class RemoteError(FractalError):
    """The other device's answer was an error; it keeps that device's exit code."""

    def __init__(self, message: str, code: str, exit_code: int) -> None:
        super().__init__(message)
        self.code = code
        known = {int(c) for c in ExitCode}
        self.exit_code = ExitCode(exit_code) if exit_code in known else ExitCode.FAILED


class Busy(FractalError):
    """Too many questions at once."""

    exit_code = ExitCode.UNREACHABLE
    code = "busy"


class Remote:
    """One group's questions under way, and those already answered."""

    def __init__(self, group: GroupAgent) -> None:
        self._group = group
        self.nonce = group.agent.entropy.bytes(12).hex()
        self._waiting: dict[str, tuple[str, asyncio.Future[Mapping[str, Any]]]] = {}
        self._answered: set[str] = set()
        self._tasks: dict[asyncio.Task[None], str] = {}
        """Answers under way, with who asked."""

    async def ask(self, device: str, command: str, params: Mapping[str, object]) -> Mapping[str, Any]:
        """Let `device` carry out a command; its answer. Raises Unreachable, or what it answered."""
        group = self._group
        known = group.state.devices.get(device)
        beat = group.beats.get(device)
        if known is None or beat is None or not group.online(device):
            name = known.name if known else device
            raise Unreachable(f"{name} does not answer: it has given no sign of life lately")
        number = group.agent.entropy.bytes(12).hex()
        question = {"ask": number, "nonce": beat.nonce, "command": command, "params": _integers(params)}
        future: asyncio.Future[Mapping[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = (device, future)
        try:
            await self._send(device, question)
            async with asyncio.timeout(ANSWER_LIMIT):
                answer = await future
        except TimeoutError as error:
            raise Unreachable(f"{known.name} did not answer within {ANSWER_LIMIT:.0f} s") from error
        finally:
            self._waiting.pop(number, None)
        return _told(known.name, answer)

    def receive(self, payload: bytes) -> bool:
        """Take in a message; False if it is none of ours. What cannot be read or is not allowed is dropped."""
        if not payload.startswith(MAGIC):
            return False
        try:
            sender, message = self._open(payload)
            if "ask" in message:
                self._serve(sender, message)
            elif "tell" in message:
                device, future = self._waiting.get(str(message["tell"]), ("", None))
                if future is not None and device == sender and not future.done():
                    future.set_result(message)
        except (FractalError, KeyError, TypeError) as error:
            self._group.logger.info("dropped a message of another device: %s", error)
        return True

    async def close(self) -> None:
        """End what is being answered."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    # --- the asked side --------------------------------------------------------------------------------------------

    def _serve(self, sender: str, message: Mapping[str, Any]) -> None:
        number = str(message["ask"])
        if message.get("nonce") != self.nonce or number in self._answered:
            return
        self._answered.add(number)
        if len(self._answered) >= REMEMBERED:
            self._answered.clear()
            self.nonce = self._group.agent.entropy.bytes(12).hex()
        if len(self._tasks) >= DROPPED:
            return
        task = asyncio.create_task(self._answer(sender, number, message))
        self._tasks[task] = sender
        task.add_done_callback(self._tasks.pop)

    async def _answer(self, sender: str, number: str, message: Mapping[str, Any]) -> None:
        output = Collected()
        try:
            self._check(sender, message)
            result = await self._carry_out(sender, message, output)
            answer: dict[str, Any] = {"tell": number, "result": _integers(result), "output": output.records()}
        except FractalError as error:
            answer = _failure(number, error)
        except TimeoutError:
            answer = _failure(number, Unreachable(f"not done after {ANSWER_LIMIT:.0f} s"))
        try:
            try:
                await self._send(sender, answer)
            except InvalidInput as error:
                await self._send(sender, _failure(number, error))
        except FractalError as error:
            self._group.logger.warning("an answer could not be sent: %s", error)

    def _check(self, sender: str, message: Mapping[str, Any]) -> None:
        state = self._group.state
        if list(self._tasks.values()).count(sender) > AT_ONCE or len(self._tasks) > AT_ONCE_ALL:
            raise Busy("the device is busy with other questions: ask again")
        if self._group.blind:
            raise Denied("the device cannot read the group's log, so it cannot tell who may ask")
        member = state.members.get(state.devices[sender].member)
        params = message.get("params")
        command = str(message.get("command"))
        if command not in {*ALLOWED, fork_key.QUESTION} or not isinstance(params, dict):
            raise Denied("that cannot be asked of another device")
        app = state.apps.get(str(params.get("app")))
        gone = app is None or (
            app.removed and command in ALLOWED
        )  # a fork may begin with an app that was removed
        if member is None or member.removed or app is None or gone:
            raise Denied("unknown member or app")
        if member.role is Role.MEMBER and app.owner_member != member.id:
            raise Denied(f"{member.name} may not do that with {app.name}: it belongs to somebody else")
        if command in ALLOWED and app.owner != self._group.me:
            # Never passed on: it would be asked in this device's name.
            raise NotFound(f"{app.name} is not on this device any more: ask again")

    async def _carry_out(
        self, sender: str, message: Mapping[str, Any], output: Collected
    ) -> Mapping[str, object]:
        if message["command"] == fork_key.QUESTION:
            origin = self._group.app(str(message["params"]["app"]))
            return fork_key.answer_fork_key(self._group, origin, sender)
        from fractal.agent.control.handlers import COMMANDS
        from fractal.agent.control.params import parse_params

        command = COMMANDS[str(message["command"])]
        wanted = {**_floats(message["params"]), "group": self._group.id}
        params = parse_params(command.spec, json.dumps(wanted).encode())
        async with asyncio.timeout(ANSWER_LIMIT):
            return await command.run(self._group.agent, params, output)

    # --- messages --------------------------------------------------------------------------------------------------

    async def _send(self, device: str, message: Mapping[str, Any]) -> None:
        agent = self._group.agent
        known = self._group.state.devices[device]
        body = encode({"from": self._group.me, "to": device, "group": self._group.id, **message})
        signed = encode({"body": pack(body), "sig": pack(agent.keys.sign(statement("ask", body)))})
        sealed = MAGIC + seal_to(known.box_key, signed, agent.entropy)
        await agent.coordinator.signal(self._group.journal.address, sealed, to=device)

    def _open(self, payload: bytes) -> tuple[str, Mapping[str, Any]]:
        state = self._group.state
        signed = decode(self._group.agent.keys.unseal(payload[len(MAGIC) :]), limit=64 << 10)
        body = unpack(signed.get("body"))
        message = decode(body, limit=64 << 10)
        sender = str(message.get("from"))
        known = state.devices.get(sender)
        if known is None or known.removed or message.get("to") != self._group.me:
            raise InvalidInput("it is not from a device of the group to this one")
        if message.get("group") != self._group.id:
            raise InvalidInput("it is of another group")
        if not verify(known.sign_key, statement("ask", body), unpack(signed.get("sig"))):
            raise InvalidInput(f"its signature is not {known.name}'s")
        return sender, message


class Collected:
    """Keeps the newest output of a command that another device asked for."""

    def __init__(self) -> None:
        self._records: deque[tuple[int, dict[str, object]]] = deque()
        self._size = 0

    def say(self, text: str) -> None:
        """Progress stays here."""

    def step(self, done: int, total: int, unit: str = "") -> None:
        """Progress stays here."""

    async def output(self, record: Mapping[str, object]) -> None:
        """Keep it, and forget the oldest ones that do not fit any more."""
        kept = dict(record)
        size = len(encode({"r": kept}))
        self._records.append((size, kept))
        self._size += size
        while self._size > LARGEST:
            self._size -= self._records.popleft()[0]

    def records(self) -> list[dict[str, object]]:
        """The newest records that fit."""
        return [record for _, record in self._records]


def _failure(number: str, error: FractalError) -> dict[str, Any]:
    wrong = {"message": str(error)[:2000], "code": error.code, "exit_code": int(error.exit_code)}
    return {"tell": number, "error": wrong}


def _told(device: str, answer: Mapping[str, Any]) -> Mapping[str, Any]:
    """The answer if it has the form of one. Raises what it says went wrong, Corrupt for anything else."""
    try:
        if "error" in answer:
            wrong = answer["error"]
            raise RemoteError(f"{device}: {wrong['message']}", str(wrong["code"]), int(wrong["exit_code"]))
        output, result = answer.get("output", []), answer["result"]
        if isinstance(result, dict) and isinstance(output, list) and all(isinstance(r, dict) for r in output):
            return answer
    except (KeyError, TypeError, ValueError) as error:
        raise Corrupt(f"{device} gave an answer that makes no sense") from error
    raise Corrupt(f"{device} gave an answer that makes no sense")


async def ask(
    group: GroupAgent, device: str, command: str, params: Mapping[str, object], progress: Progress
) -> dict[str, object]:
    """Let another device carry out a command and pass its output on; its result fields."""
    answer = await group.remote.ask(device, command, params)
    for record in answer.get("output", []):
        await progress.output(record)
    result: dict[str, object] = _floats(answer["result"])
    return result


def _integers(value: Any) -> Any:
    """Numbers that are no integers travel as {"ms": thousandths}: the encoding holds integers only."""
    if isinstance(value, float):
        return {"ms": round(value * 1000)}
    if isinstance(value, Mapping):
        return {k: _integers(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_integers(v) for v in value]
    if isinstance(value, str) and len(value) > LARGEST:
        return value[-LARGEST:]
    return value


def _floats(value: Any) -> Any:
    if isinstance(value, Mapping):
        if set(value) == {"ms"} and isinstance(value["ms"], int):
            return value["ms"] / 1000
        return {k: _floats(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_floats(v) for v in value]
    return value
