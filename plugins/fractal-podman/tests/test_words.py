"""Names, signals and states in Podman's words."""

from __future__ import annotations

from typing import Any

import pytest
from fractal_containers.options import Options
from fractal_containers.wanted import Wanted
from fractal_podman.words import container, payload, qualified, signal_number, volume_options

FOUND: dict[str, Any] = {
    "Id": "c" * 64,
    "State": {
        "Status": "exited",
        "ExitCode": 7,
        "StartedAt": "2026-01-01T00:00:00Z",
        "FinishedAt": "2026-01-01T00:01:05Z",
    },
    "Config": {
        "Labels": {"a": "b"},
        "StopSignal": 2,
        "Healthcheck": {"Test": ["CMD-SHELL", "true"], "Timeout": 10**9},
    },
    "NetworkSettings": {
        "Ports": {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "4000"}], "81/tcp": None},
        "Networks": {},
    },
}


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("nginx", "docker.io/library/nginx"),
        ("nginx:1.27", "docker.io/library/nginx:1.27"),
        ("ada/notes@sha256:" + "a" * 64, "docker.io/ada/notes@sha256:" + "a" * 64),
        ("ghcr.io/ada/notes:2", "ghcr.io/ada/notes:2"),
        ("localhost/notes", "localhost/notes"),
        ("registry:5000/notes", "registry:5000/notes"),
        ("sha256:" + "a" * 64, "sha256:" + "a" * 64),
        ("a" * 64, "a" * 64),
    ],
)
def test_names_mean_what_compose_means(name: str, meant: str) -> None:
    assert qualified(name) == meant


def test_signals_have_numbers() -> None:
    assert [signal_number(name) for name in ("SIGINT", "15", "SIGRTMIN+3")] == [2, 15, 37]
    with pytest.raises(ValueError, match="SIGNONSENSE"):
        signal_number("SIGNONSENSE")


def test_a_container_is_read() -> None:
    found = container(FOUND)
    assert (found.running, found.begun, found.exit_code, found.lived) == (False, True, 7, 65.0)
    assert found.published == {"80/tcp": ("127.0.0.1", 4000)}
    assert found.test is not None
    assert (found.test.test, found.test.timeout, found.test.interval) == (
        ("/bin/sh", "-c", "true"),
        1.0,
        30.0,
    )


@pytest.mark.parametrize(
    ("status", "running", "begun"),
    [
        ("created", False, False),
        ("initialized", False, False),
        ("paused", True, True),
        ("running", True, True),
    ],
)
def test_states(status: str, running: bool, begun: bool) -> None:
    found = container({**FOUND, "State": {"Status": status}})
    assert (found.running, found.begun) == (running, begun)


def test_what_nobody_asked_for_is_not_said_and_what_must_be_is() -> None:
    """An empty value would replace what the image says."""
    wanted = Wanted(
        name="n", image="i", labels={}, networks=("net",), alias="main", cgroup_parent="/x", log_bytes=4096,
        ports=((53, "tcp"), (53, "udp")), options=Options(platform="linux/arm/v7"),
    )  # fmt: skip
    made = payload(wanted)
    assert not {"entrypoint", "command", "user", "stop_signal", "healthconfig", "init"} & set(made)
    assert (made["restart_policy"], made["no_new_privileges"], made["cgroups_mode"]) == (
        "no",
        True,
        "no-conmon",
    )
    assert made["expose"] == {53: "tcp,udp"}
    assert [m["host_ip"] for m in made["portmappings"]] == ["127.0.0.1", "127.0.0.1"]
    assert (made["image_os"], made["image_arch"], made["image_variant"]) == ("linux", "arm", "v7")


def test_memory_that_services_share_is_bounded_in_pages() -> None:
    """Podman would take `size` for a quota."""
    options = {"type": "tmpfs", "device": "tmpfs", "o": "size=5000,uid=7"}
    assert volume_options(options, 4096)["o"] == "nr_blocks=2,uid=7"
    assert volume_options({**options, "o": "size=2M"}, 16384)["o"] == "nr_blocks=128"
    share = {"type": "nfs", "device": ":/x", "o": "addr=a"}
    assert volume_options(share, 4096) == share
    assert volume_options({"type": "tmpfs"}, 4096) == {"type": "tmpfs"}
