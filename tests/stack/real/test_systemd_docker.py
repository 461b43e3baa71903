"""Docker as a distribution starts it: by systemd, with the systemd cgroup driver, on cgroup v2."""

from __future__ import annotations

import os
import re

import pytest

from tests.stack.real.booted import PLAIN, Booted, booted, missing
from tests.stack.real.images import Recipe

RECIPE = Recipe(
    "fractal-test-systemd-docker:1",
    (
        *PLAIN.packages,
        *("docker.io", "iptables", "iproute2", "busybox-static"),
        *("nftables", "procps", "kmod", "libcap2-bin", "util-linux"),
    ),
)
CHECKED = 500.0
BORN_FROZEN = """
outer=/sys/fs/cgroup/fractal.slice/fractal-0123.slice
mkdir -p $outer/fractal-0123-app.slice
echo 1 > $outer/cgroup.freeze
docker run --detach --name born --network none --cgroup-parent fractal-0123-app.slice --volume /root/born:/born \\
  localhost/fractal-test/python:1 python3 -S -c 'open("/born/ran", "w")' &
until grep -qx "populated 1" $outer/cgroup.events; do sleep 0.1; done
systemctl daemon-reload
sleep 1
grep -qx "frozen 1" $outer/cgroup.events
test ! -e /root/born/ran
echo 0 > $outer/cgroup.freeze
wait
until test -e /root/born/ran; do sleep 0.1; done
docker rm --force born
rmdir $outer/fractal-0123-app.slice $outer
"""
"""What the runtime and the guard do, by hand: no program of a container runs in a slice that was frozen before."""


@pytest.mark.timeout(1500)
def test_an_engine_as_it_comes_keeps_the_runtimes_contract() -> None:
    if reason := missing():
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    with booted(RECIPE) as machine:
        driver = machine.run("docker", "info", "--format", "{{.CgroupDriver}} {{.CgroupVersion}}")
        assert driver == "systemd 2", "no daemon.json was written"
        use_docker(machine)
        said = machine.run("homeserver", "plugin", "check", "docker", timeout=CHECKED, check=False)
        print(said)
        assert re.search(r"^ *[0-9]+ of ([3-9][0-9]) tests passed", said, re.MULTILINE), (
            "the suite came to its end"
        )
        assert not re.findall(r"^ *failed: (\w+)", said, re.MULTILINE)
        left = machine.run("sh", "-c", "ls -d /sys/fs/cgroup/fractal.slice/*.slice || true")
        assert not left, "a run's cgroups go with it, whoever made them"
        machine.run("sh", "-exc", BORN_FROZEN, timeout=90)


def use_docker(machine: Booted) -> None:
    """Configure the device for it, as the page says."""
    machine.run("homeserver", "config", "init", "--name", "Kitchen")
    config = machine.root / "etc/homeserver/config.toml"
    before, _, after = config.read_text().partition("[runtime]")
    after = after.partition("[snapshot]")[2]
    config.write_text(f'{before}[runtime]\nbackend = "docker"\n[runtime.docker]\n[snapshot]{after}')
    machine.run("homeserver", "config", "check")
