"""The catalog's apps on a real engine. Their images cannot be had here: each is a stand-in that records what it was given, and is held
against what its real one documents."""

from __future__ import annotations

import asyncio
import contextlib
import io
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fractal_containers.testing import TestEngine, opened
from fractal_containers.testing_images import busybox_tar

import fractal.catalog
from fractal.api.app import AppRun, AppSpec
from fractal.api.runtime import Health
from fractal.manifest import Given, parse, secret_forms
from fractal.testing.agents import bed
from fractal.testing.group import SeededEntropy

pytestmark = pytest.mark.timeout(600)  # four containers at once, beside whatever else the machine does

FOLDER = Path(next(iter(fractal.catalog.__path__)))
APPS = sorted(path.stem for path in FOLDER.glob("*.yml"))
HOST = "app.example.org"
RECORD = """#!/bin/sh
mkdir -p /tmp/given
for word in "$@"; do echo "$word"; done > /tmp/given/argv
env > /tmp/given/env
id -u > /tmp/given/user
cat /proc/mounts > /tmp/given/mounts
for port in $PORTS; do httpd -p "$port" -h /tmp/given; done
trap "exit 0" TERM
sleep 1000000 &
wait
"""


@dataclass(frozen=True)
class Documented:
    """What the page or the Dockerfile of an image says of it."""

    env: str
    """Variables that it reads: a pattern."""
    folders: frozenset[str]
    """Where it keeps what it keeps."""
    ports: str = ""
    """Where it listens."""
    argv: tuple[str, ...] = ()
    """What it is started with if nothing is said."""
    files: frozenset[str] = frozenset()
    """Where it looks for files that others write."""


def documented(
    env: str, *folders: str, ports: str = "", argv: tuple[str, ...] = (), files: str = ""
) -> Documented:
    return Documented(env, frozenset(folders), ports, argv, frozenset(files.split()))


IMAGES = {
    "vaultwarden/server": documented(
        "DOMAIN|SIGNUPS_ALLOWED|INVITATIONS_ALLOWED|ADMIN_TOKEN|SMTP_(HOST|PORT|SECURITY|FROM|USERNAME|PASSWORD)",
        *("/data", "/data/icon_cache"),
        ports="80",
        argv=("/start.sh",),
    ),
    "library/nextcloud": documented(
        "(POSTGRES|REDIS)_HOST|POSTGRES_(DB|USER|PASSWORD)|NEXTCLOUD_(ADMIN_USER|ADMIN_PASSWORD|TRUSTED_DOMAINS)"
        "|OVERWRITE(PROTOCOL|CLIURL|HOST)|TRUSTED_PROXIES|PHP_(MEMORY|UPLOAD)_LIMIT",
        *("/var/www/html", "/var/www/html/data"),
        ports="80",
        argv=("apache2-foreground",),
    ),
    "library/postgres:17": documented("POSTGRES_(DB|USER|PASSWORD|INITDB_ARGS)", "/var/lib/postgresql/data", argv=("postgres",)),
    "library/postgres:18": documented("POSTGRES_(DB|USER|PASSWORD|INITDB_ARGS)", "/var/lib/postgresql", argv=("postgres",)),
    "immich-app/postgres:14": documented("POSTGRES_(DB|USER|PASSWORD|INITDB_ARGS)", "/var/lib/postgresql/data", argv=("postgres",)),
    "library/mariadb": documented(
        "MARIADB_(DATABASE|USER|PASSWORD|ROOT_PASSWORD|RANDOM_ROOT_PASSWORD|AUTO_UPGRADE)", "/var/lib/mysql", argv=("mariadbd",)
    ),
    "valkey/valkey": documented("VALKEY_EXTRA_FLAGS", "/data", argv=("valkey-server",)),
    "immich-app/immich-server": documented(
        "TZ|DB_(HOSTNAME|USERNAME|PASSWORD|DATABASE_NAME)|REDIS_HOSTNAME|IMMICH_(MACHINE_LEARNING_URL|TRUSTED_PROXIES)",
        "/data",
        ports="2283",
    ),
    "immich-app/immich-machine-learning": documented("TZ|MACHINE_LEARNING_[A-Z_]+", "/cache"),
    "jellyfin/jellyfin": documented("TZ|JELLYFIN_PublishedServerUrl", "/config", "/cache", "/media", ports="8096"),
    "forgejo/forgejo": documented(
        "USER_UID|USER_GID|FORGEJO__[A-Za-z]+__[A-Z_]+", "/data", ports="3000 22"
    ),
    "miniflux/miniflux": documented(
        "DATABASE_URL|RUN_MIGRATIONS|CREATE_ADMIN|ADMIN_(USERNAME|PASSWORD)|BASE_URL|POLLING_FREQUENCY", ports="8080"
    ),
    "home-assistant/home-assistant": documented("TZ", "/config", ports="8123"),
    "paperless-ngx/paperless-ngx": documented(
        "PAPERLESS_(REDIS|DBENGINE|DBHOST|DBNAME|DBUSER|DBPASS|SECRET_KEY|URL|ADMIN_USER|ADMIN_PASSWORD|TIME_ZONE|OCR_LANGUAGE)",
        *(f"/usr/src/paperless/{name}" for name in ("data", "media", "export", "consume")),
        ports="8000",
    ),
    "louislam/uptime-kuma": documented("TZ|UPTIME_KUMA_DB_TYPE", "/app/data", ports="3001"),
    "deluan/navidrome": documented("ND_(BASEURL|SCANNER_SCHEDULE|LOGLEVEL)", "/data", "/data/cache", "/music", ports="4533"),
    "library/wordpress": documented(
        "WORDPRESS_(DB_HOST|DB_NAME|DB_USER|DB_PASSWORD|TABLE_PREFIX)", "/var/www/html", ports="80", argv=("apache2-foreground",)
    ),
    "kozea/radicale": documented(
        "", "/var/lib/radicale", ports="5232", files="/etc/radicale/config /etc/radicale/users"
    ),
}  # fmt: skip
WRITTEN = {
    "home-assistant": {
        f"config/{name}.yaml" for name in ("automations", "configuration", "scenes", "scripts")
    }
}
"""App -> what its manifest puts into its volumes; others start with empty ones."""
TOOLS = "pg_isready valkey-cli healthcheck.sh cron.sh"
"""What manifests run in images beside their own programs: here each does nothing, and well."""


def facts(image: str) -> Documented:
    return next(found for name, found in IMAGES.items() if f"/{name}" in image)


def stand_in(engine: TestEngine, image: str) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        busybox_tar(tar, "mkdir mv printf tail")
        for name, text in {
            "record": RECORD,
            **dict.fromkeys(TOOLS.split(), "#!/bin/sh\necho PONG\n"),
        }.items():
            entry = tarfile.TarInfo(f"bin/{name}")
            entry.size, entry.mode = len(text.encode()), 0o755
            tar.addfile(entry, io.BytesIO(text.encode()))
        entry = tarfile.TarInfo("cron.sh")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/bin/record"
        tar.addfile(entry)
    known = facts(image)
    command = ", ".join(f'"{word}"' for word in known.argv)
    changes = [
        "ENV PATH=/bin",
        f'ENV PORTS="{known.ports}"',
        'ENTRYPOINT ["/bin/record"]',
        f"CMD [{command}]",
    ]
    engine.import_image(archive.getvalue(), image, changes)


@dataclass
class Started:
    """One app that was started."""

    spec: AppSpec
    secrets: dict[str, str]
    root: Path
    ignored: Path
    health: dict[str, Health]
    given: dict[str, dict[str, str]]
    """Service -> what its container recorded, by file."""


@pytest.fixture(scope="module", params=APPS)
def app(
    request: pytest.FixtureRequest, docker_engine: TestEngine, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Started]:
    """On one engine: that both make the same of each key is tested elsewhere, and this takes minutes."""
    engine = docker_engine
    name: str = request.param
    spec = parse((FOLDER / f"{name}.yml").read_text(), name, given=Given(host=HOST))
    for image in sorted({service.image for service in spec.services}):
        stand_in(engine, image)
    folder = tmp_path_factory.mktemp(name)
    root, ignored = folder / "root", folder / "ignored"
    root.mkdir()
    ignored.mkdir()
    forms = {n: spec.secret_forms.get(n, secret_forms.DEFAULT) for n in spec.generated_secrets}
    random = SeededEntropy().bytes
    secrets = {n: secret_forms.make(form, random) for n, form in forms.items()}
    run = AppRun(
        group="group", app=name, epoch=1, spec=spec, volume_root=root, ignored_root=ignored, secrets=secrets
    )
    with engine.network(), asyncio.Runner() as runner:
        stack = contextlib.AsyncExitStack()
        try:
            runtime = runner.run(stack.enter_async_context(opened(engine, folder)))
            assert list(runtime.check(spec)) == []
            runner.run(runtime.prepare(run))
            runner.run(runtime.start(run))
            health = runner.run(_healthy(runtime, run))
            given = {
                service.name: {
                    what: runner.run(
                        runtime.exec(run.key, service.name, ["cat", f"/tmp/given/{what}"])
                    ).output.decode()
                    for what in ("argv", "env", "user", "mounts")
                }
                for service in spec.services
                if service.restart != "no"
            }
            yield Started(spec, secrets, root, ignored, health, given)
        finally:
            runner.run(stack.aclose())


async def _healthy(runtime: Any, run: AppRun) -> dict[str, Health]:
    """Health by service once the app is healthy, or after minutes: engines beside other tests are slow."""
    found: dict[str, Health] = {}
    for _ in range(600):
        seen = next((r for r in await runtime.observe() if r.key == run.key), None)
        found = {s.name: s.health for s in seen.services} if seen is not None else {}
        if seen is not None and seen.health is Health.HEALTHY:
            break
        await asyncio.sleep(0.5)
    return found


def test_it_becomes_healthy(app: Started) -> None:
    assert set(app.health) == {service.name for service in app.spec.services}
    assert set(app.health.values()) == {Health.HEALTHY}, app.health


def test_each_image_is_given_only_what_it_documents_and_every_secret_in_clear(app: Started) -> None:
    ours = re.compile(r"PATH|PORTS|HOME|HOSTNAME|PWD|SHLVL|TERM|container")
    for service in app.spec.services:
        if service.name not in app.given:
            continue
        env = dict(line.split("=", 1) for line in app.given[service.name]["env"].splitlines() if "=" in line)
        assert {n: env.get(n) for n in service.env} == {
            n: re.sub(r"\{secret\.(\w+)\}", lambda m: app.secrets[m[1]], value)
            for n, value in service.env.items()
        }
        foreign = [n for n in env if not ours.fullmatch(n) and not re.fullmatch(facts(service.image).env, n)]
        assert foreign == [], service.name


def test_all_that_it_keeps_is_kept_where_the_image_has_it(app: Started) -> None:
    for service in app.spec.services:
        if service.name not in app.given:
            continue
        known = facts(service.image)
        assert {mount.target for mount in service.mounts} <= known.folders
        mounted = {line.split()[1]: line.split() for line in app.given[service.name]["mounts"].splitlines()}
        for target in known.folders:
            assert target in mounted, f"{service.name}: {target} is lost at each start"
        assert set(service.files) <= known.files
    for volume in app.spec.volumes:
        assert (app.ignored if volume in app.spec.ignored else app.root, volume)[0].joinpath(volume).is_dir()
    assert {p.name for p in app.root.iterdir()} == set(app.spec.volumes) - set(app.spec.ignored)


def test_programs_are_started_as_their_images_do(app: Started) -> None:
    for name, recorded in app.given.items():
        (service,) = [s for s in app.spec.services if s.name == name]
        argv = tuple(recorded["argv"].splitlines())
        assert recorded["user"].strip() == "0"  # none of them asks for another than the image's own
        if service.argv:
            assert argv == service.argv
        elif not service.entrypoint:
            assert argv == facts(service.image).argv


def test_the_entrance_is_where_the_image_listens(app: Started) -> None:
    (web,) = [s for s in app.spec.services if s.name == app.spec.web_service]
    assert {str(port.container) for port in web.ports} <= set(facts(web.image).ports.split())


def test_only_what_a_manifest_writes_lies_in_the_volumes(app: Started) -> None:
    """Stand-ins write nothing there."""
    files = {str(p.relative_to(app.root)): p for p in app.root.rglob("*") if not p.is_dir()}
    assert set(files) == WRITTEN.get(app.spec.name, set())
    if app.spec.name == "home-assistant":
        told = files["config/configuration.yaml"].read_text()
        assert told.count("use_x_forwarded_for: true") == 1


async def test_it_is_installed_by_its_name_on_a_whole_agent(
    engine: TestEngine, inside: None, tmp_path: Path
) -> None:
    stand_in(engine, parse((FOLDER / "vaultwarden.yml").read_text()).services[0].image)
    pi = "Raspberry Pi"
    (tmp_path / pi).mkdir()
    (tmp_path / pi / "config.toml").write_text(
        f'schema = 1\n[device]\nname = "{pi}"\nstate_dir = "{tmp_path}/{pi}/state"\n'
        f'runtime_dir = "{tmp_path}/{pi}/run"\n'
        f'[runtime]\nbackend = "{engine.name}"\n[runtime.{engine.name}]\nsocket = "{engine.socket}"\n'
        f'[coordination.sqlite]\npath = "{tmp_path}/log.sqlite"\n[transport.direct]\nhttps_port = 0\n'
    )
    async with bed(tmp_path) as made:
        await made.start(pi)
        await made.found(pi)
        given = {"SIGNUPS_ALLOWED": "no", "ADMIN_TOKEN": "a-token-canary"}
        wanted = {"app": "vaultwarden", "device": pi, "env": given, "routes": [HOST]}
        plan = await made.call(pi, "app.install", **wanted, dry_run=True)
        assert "canary" not in repr(plan)
        assert plan["plan"][0]["detail"]["does not keep"].startswith("icons")
        try:
            installed = await made.call(pi, "app.install", **wanted, name="test", wait_s=100)
            assert installed["done"], made.job(pi).problem()
            told = await made.call(pi, "app.exec", app="test", argv=["cat", "/tmp/given/env"])
            env = dict(line.split("=", 1) for line in told["output"].splitlines())
            assert env["DOMAIN"] == f"https://{HOST}"
            assert (env["SIGNUPS_ALLOWED"], env["ADMIN_TOKEN"]) == ("false", "a-token-canary")
            assert "SMTP_HOST" not in env  # empty, it would ask for a mail server without a name
            write = "echo kept > /data/db; echo made > /data/icon_cache/icon"
            await made.call(pi, "app.exec", app="test", argv=["sh", "-c", write])
            root, job = await made.job(pi).data.root(), made.job(pi)
            assert (root / "data" / "db").read_text() == "kept\n"
            assert list((root / "data" / "icon_cache").iterdir()) == []
            assert (job.data.ignored_root() / "icons" / "icon").read_text() == "made\n"
            assert "canary" not in repr(made.app(pi))
        finally:
            await made.call(pi, "app.remove", app="test", wait_s=60)
            await made.until(lambda: not made.at(pi).jobs)
