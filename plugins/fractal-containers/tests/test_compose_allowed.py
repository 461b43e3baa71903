"""What an app may have of a device only where the device says so, on real engines."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from fractal_containers.check import refusals
from fractal_containers.config import EngineConfig
from fractal_containers.testing import TestEngine, opened
from fractal_containers.testing_images import BUSYBOX

from fractal.api.app import AppRun
from fractal.api.errors import BackendError
from fractal.manifest import Given, parse


async def test_a_device_may_allow_even_privileged_services(
    engine: TestEngine, inside: None, tmp_path: Path
) -> None:
    spec = parse(
        f"services: {{main: {{image: '{BUSYBOX}', command: [sleep, '99'], privileged: true}}}}",
        given=Given(allowed=frozenset({"privileged"})),
    )
    run = AppRun(group="group", app="app", epoch=1, spec=spec, volume_root=tmp_path)
    client = engine.api()
    try:
        async with opened(engine, tmp_path, capabilities=("ALL",)) as runtime:
            with contextlib.suppress(BackendError):  # where this machine has not all capabilities itself
                await runtime.start(run)
            (container,) = await runtime._containers(run.key)
            assert client.inspect_container(container.id)["HostConfig"]["Privileged"] is True
    finally:
        client.close()


async def test_mounts_are_shared_with_the_device_only_where_it_says_so(
    engine: TestEngine, inside: None, tmp_path: Path
) -> None:
    """The engine is told; whether it can is up to the device's own mount, which here is not shared."""
    allowed = frozenset({f"host-path:{tmp_path}", "shared-mounts"})
    text = f"services: {{main: {{image: '{BUSYBOX}', command: [sleep, '99'], volumes: ['{tmp_path}:/x:rshared']}}}}"
    run = AppRun(
        group="group",
        app="app",
        epoch=1,
        spec=parse(text, given=Given(allowed=allowed)),
        volume_root=tmp_path,
    )
    assert [r.key for r in refusals(run.spec, EngineConfig(allow=("host-path:/",)))] == ["volumes"]
    client = engine.api()
    try:
        async with opened(engine, tmp_path, allow=("all",)) as runtime:
            with contextlib.suppress(BackendError):
                await runtime.start(run)
            (container,) = await runtime._containers(run.key)
            found = client.inspect_container(container.id)
            binds = [*(found["HostConfig"].get("Mounts") or ()), *(found["HostConfig"].get("Binds") or ())]
            assert "rshared" in str(binds)
    finally:
        client.close()


SHARE = """
services:
  main: {image: "%s", command: [sleep, "99"], volumes: ["films:/films:ro"]}
volumes:
  films: {driver: local, driver_opts: {type: nfs, o: "addr=127.0.0.1,nfsvers=4,rw", device: ":/films"}}
"""


async def test_a_share_in_the_network_is_mounted_by_the_engine_where_the_device_says_so(
    engine: TestEngine, inside: None, tmp_path: Path
) -> None:
    """Nobody serves files here, so the engine is asked for it, and says that it cannot."""
    allowed = frozenset({"mount:nfs:127.0.0.1:/films"})
    spec = parse(SHARE % BUSYBOX, given=Given(allowed=allowed))
    run = AppRun(group="group", app="app", epoch=1, spec=spec, volume_root=tmp_path)
    assert [r.key for r in refusals(spec, EngineConfig(allow=("mount:nfs:127.0.0.1:/music",)))] == ["volumes"]
    assert not list(refusals(spec, EngineConfig(allow=("mount:nfs:127.0.0.1:/",))))
    client = engine.api()
    ours = {"label": f"org.fractal-homeserver.run={run.key}"}
    try:
        async with opened(engine, tmp_path, allow=("all",)) as runtime:
            with pytest.raises(BackendError, match="service main does not start"):
                await runtime.start(run)
            (volume,) = client.volumes(filters=ours)["Volumes"]
            assert volume["Options"] == {
                "type": "nfs",
                "o": "addr=127.0.0.1,nfsvers=4,rw",
                "device": ":/films",
            }
            (container,) = await runtime._containers(run.key)
            (mount,) = client.inspect_container(container.id)["Mounts"]
            assert (mount["Name"], mount["Destination"], mount["RW"]) == (volume["Name"], "/films", False)
            await runtime.kill(run.key)
            await runtime.remove(run.key)
            assert not client.volumes(filters=ours)["Volumes"]
    finally:
        client.close()
