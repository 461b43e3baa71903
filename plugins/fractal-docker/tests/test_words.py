"""States and wishes in Docker's words."""

from __future__ import annotations

from typing import Any

import pytest
from fractal_containers.wanted import Wanted
from fractal_docker.words import container, payload

FOUND: dict[str, Any] = {
    "Id": "c" * 64,
    "State": {
        "Status": "exited",
        "ExitCode": 7,
        "StartedAt": "2026-01-01T00:00:00Z",
        "FinishedAt": "2026-01-01T00:01:05Z",
    },
    "Config": {"Labels": {"a": "b"}, "StopSignal": "SIGINT"},
    "NetworkSettings": {
        "Ports": {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "4000"}], "81/tcp": None},
        "Networks": {"n": {"IPAddress": "172.18.0.2"}},
    },
}


def test_a_container_is_read() -> None:
    found = container(FOUND)
    assert (found.running, found.begun, found.exit_code, found.lived) == (False, True, 7, 65.0)
    assert found.published == {"80/tcp": ("127.0.0.1", 4000)}
    assert (found.address, found.stop_signal, found.checked) == ("172.18.0.2", "SIGINT", None)


@pytest.mark.parametrize(
    ("health", "status", "output"),
    [
        ({"Status": "starting", "Log": None}, "starting", ""),
        ({"Status": "unhealthy", "Log": [{"Output": "old"}, {"Output": "new"}]}, "unhealthy", "new"),
    ],
)
def test_the_engines_check_is_read(health: dict[str, Any], status: str, output: str) -> None:
    checked = container({**FOUND, "State": {"Status": "running", "Running": True, "Health": health}}).checked
    assert checked is not None
    assert (checked.status, checked.output) == (status, output)


def test_what_nobody_asked_for_is_not_said_and_what_must_be_is() -> None:
    """An empty value would replace what the image says."""
    wanted = Wanted(
        name="n", image="i", labels={}, networks=("net",), alias="main", cgroup_parent="/x", log_bytes=4096,
        ports=((80, "tcp"),),
    )  # fmt: skip
    made = payload(wanted)
    assert all(made[key] is None for key in ("entrypoint", "command", "user", "stop_signal", "healthcheck"))
    host = made["host_config"]
    assert host["RestartPolicy"] == {"Name": "no"}
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["PortBindings"] == {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}]}
