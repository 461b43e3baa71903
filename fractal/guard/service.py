"""Starts one service: fork, own session, limits, log, exec. Runs inside the keeper, which has a single thread."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field

from fractal.guard.linux import close_all_but, die_with_parent, spare_from_oom
from fractal.guard.processes import GUARD_MARK, RUN_MARK
from fractal.guard.wire import BadMessageError, Fields, Message

_LIMITS = {
    "memory": resource.RLIMIT_AS,
    "processes": resource.RLIMIT_NPROC,
    "files": resource.RLIMIT_NOFILE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to start. Every path is absolute; nothing is looked up by a shell."""

    run: str
    service: str
    argv: tuple[str, ...]
    cwd: str
    log: str
    """File that receives stdout and stderr, appended to."""
    stdin: str = ""
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    limits: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def parse(cls, message: Message) -> Order:
        """Raises BadMessageError."""
        fields = Fields(message)
        order = cls(
            run=fields.text("run", limit=200),
            service=fields.text("service", limit=200),
            argv=tuple(fields.texts("argv")),
            cwd=fields.text("cwd"),
            log=fields.text("log"),
            stdin=fields.text("stdin", default=""),
            env=fields.text_mapping("env"),
            limits={
                n: Fields(fields.mapping("limits")).integer(n, low=0, high=1 << 62, default=0)
                for n in _LIMITS
            },
        )
        if not order.argv or not order.service:
            raise BadMessageError("argv, service: must not be empty")
        for path in (order.cwd, order.log, order.stdin or "/"):
            if not path.startswith("/"):
                raise BadMessageError(f"{path}: must be an absolute path")
        return order


def start(order: Order, guard: str) -> int:
    """Start the service and return its pid, which is also its session and process group. Raises OSError."""
    told, tell = os.pipe()  # closed by a successful exec, else it carries the reason
    keeper = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            _become(order, guard, keeper, tell)
        except OSError as error:
            os.write(
                tell,
                f"{error.errno or 0} {error.strerror}: {os.fsdecode(error.filename or order.argv[0])}".encode(),
            )
        finally:
            os._exit(127)
    os.close(tell)
    reason = b""
    while chunk := os.read(told, 4096):
        reason += chunk
    os.close(told)
    if reason:
        number, _, text = reason.decode("utf-8", "replace").partition(" ")
        raise OSError(int(number), text)
    return pid


def _become(order: Order, guard: str, keeper: int, tell: int) -> None:
    os.setsid()
    die_with_parent(signal.SIGKILL)
    if os.getppid() != keeper:  # it died before the line above took effect
        os._exit(127)
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGCHLD):
        signal.signal(signum, signal.SIG_DFL)
    os.umask(0o077)
    spare_from_oom(spare=False)
    stdin = os.open(order.stdin or os.devnull, os.O_RDONLY)
    log = os.open(order.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
    os.dup2(stdin, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    close_all_but({tell})
    os.chdir(order.cwd)
    for name, amount in order.limits.items():
        if amount:
            resource.setrlimit(_LIMITS[name], (amount, amount))
    environment = {**order.env, RUN_MARK: order.run, GUARD_MARK: guard}
    try:
        os.execvpe(order.argv[0], order.argv, environment)  # noqa: S606 - no shell is the point
    except OSError as error:
        # Of all places where it was looked for, the last is no more to the point than the others.
        raise OSError(error.errno, error.strerror, order.argv[0]) from error
