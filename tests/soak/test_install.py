"""What an install costs beside the engine's own `run` of the same image: from the command to an app that answers, by turns."""

from __future__ import annotations

import os
import statistics
import time

import pytest

from tests.stack.bed import until
from tests.stack.real.device import GROUP, Device
from tests.stack.real.engines import Docker, Podman
from tests.stack.real.small import IMAGE, SETTINGS, Notebook, image
from tests.stack.real.test_databases import device
from tests.stack.real.world import World

ROUNDS = 5
ASKED = ("/bin/busybox", "wget", "-q", "-O", "-", "http://127.0.0.1:8000/cgi-bin/lines")
pytestmark = [
    pytest.mark.skipif(
        not float(os.environ.get("SOAK_SECONDS", "0")), reason="set SOAK_SECONDS, or run `make soak`"
    ),
    pytest.mark.timeout(900),
]


@pytest.mark.parametrize("kind", [Docker, Podman])
def test_an_install_beside_the_engines_own_run(real: World, kind: type[Docker | Podman]) -> None:
    pi = device(real, kind)
    assert isinstance(pi.engine, Docker | Podman)
    pi.engine.load(image(real.folder), IMAGE, SETTINGS)
    plain, ours = [], []
    for number in range(ROUNDS):
        plain.append(_run(pi, pi.engine, f"plain-{number}"))
        began = time.monotonic()
        app = Notebook.install(real, pi)
        ours.append(time.monotonic() - began)
        assert app.add(pi) == 0, "each is a new one"
        pi.run("app", "remove", app.name, "--group", GROUP, "--yes")
    base, whole = statistics.median(plain), statistics.median(ours)
    for what, values in (("the engine alone", plain), ("app install", ours)):
        real.figure(what, " ".join(f"{value:.2f}" for value in values), "s")
    real.figure(
        "median of both, and beyond", f"{base:.2f} {whole:.2f} {whole - base:.2f}", "s, goal 1 beyond"
    )
    print(real.table())


def _run(pi: Device, engine: Docker | Podman, name: str) -> float:
    """Seconds until a container that is started by hand answers."""
    env = engine.environment if isinstance(engine, Podman) else None

    def say(*words: str) -> None:
        pi.machine.run(*engine.command, *words, env=env)

    def answers() -> bool:
        try:
            say("exec", name, *ASKED)
        except RuntimeError:
            return False
        return True

    began = time.monotonic()
    say("run", "--detach", "--name", name, "--volume", f"{name}:/data", IMAGE)
    until(answers, 60, f"{name} answers")
    took = time.monotonic() - began
    say("rm", "--force", "--volumes", name)
    return took
