"""The `x-homeserver` sections: of the whole file and of one service."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fractal.api.app import HOOK_TIMEOUT, HealthSpec, Port, ProcessSpec
from fractal.manifest import rules
from fractal.manifest.fields import FormField, form_fields
from fractal.manifest.mounts import folder
from fractal.manifest.values import Where

APP_KEYS = frozenset(
    {
        *("web", "secrets", "architectures", "consistency", "hooks", "title", "summary", "version"),
        *("website", "fields", "data"),
    }
)
ABOUT = ("title", "summary", "version", "website")
SERVICE_KEYS = frozenset({"process", "health", "secrets"})
PROCESS_KEYS = frozenset({"argv", "requirements", "ports", "data", "files"})
HEALTH_KEYS = frozenset({"test", "http", "port", "interval", "timeout", "retries", "start_period"})

Hooks = tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(slots=True)
class AppSection:
    """`x-homeserver` at the top."""

    web_service: str = ""
    web_port: str = ""
    secrets: tuple[str, ...] = ()
    architectures: tuple[str, ...] = ()
    consistency: str = "crash"
    before: Hooks = ()
    after: Hooks = ()
    hook_timeout: float = HOOK_TIMEOUT
    about: dict[str, str] = field(default_factory=dict)
    """What is for catalogs, see `ABOUT`."""
    fields: tuple[FormField, ...] = ()
    """What is asked of whoever installs the app."""
    ignored: tuple[str, ...] = ()
    """Volumes that are in no snapshot."""


@dataclass(slots=True)
class ServiceSection:
    """`x-homeserver` in a service."""

    process: ProcessSpec | None = None
    ports: tuple[Port, ...] = ()
    data: tuple[str, ...] = ()
    health: HealthSpec | None = None
    secrets: tuple[str, ...] = ()


def generated_secrets(where: Where | None) -> tuple[str, ...]:
    """`secrets.generate`, read before everything else because `${NAME}` may stand for one anywhere."""
    if where is None:
        return ()
    section = where.table().get("secrets")
    names = section.table(frozenset({"generate"})).get("generate") if section is not None else None
    return (
        tuple(item.name(rules.SECRET, "a secret's name") for item in names.items())
        if names is not None
        else ()
    )


def app_section(where: Where | None) -> AppSection:
    """Read the section at the top."""
    found = AppSection(secrets=generated_secrets(where))
    table = where.table(APP_KEYS) if where is not None else {}
    if (web := table.get("web")) is not None:
        entries = web.table(frozenset({"service", "port"}))
        found.web_service = entries["service"].text() if "service" in entries else ""
        found.web_port = entries["port"].text() if "port" in entries else "web"
        if not found.web_service:
            web.wrong("needs `service`")
    if (names := table.get("architectures")) is not None:
        found.architectures = tuple(item.text() for item in names.items())
    _consistency(table, found)
    if (data := table.get("data")) is not None:
        entries = data.table(frozenset({"ignore"}))
        found.ignored = _ignored(entries["ignore"]) if "ignore" in entries else ()
    found.fields = form_fields(where)
    found.about = {name: table[name].plain() for name in ABOUT if name in table}
    return found


def _ignored(where: Where) -> tuple[str, ...]:
    """As they are named in `volumes`: a volume's name, or a folder such as ./cache."""
    names = [folder(item, item.plain()) for item in where.items()]
    return tuple(dict.fromkeys(name for name in names if name))


def _consistency(table: Mapping[str, Where], found: AppSection) -> None:
    """Hooks are what makes snapshots consistent if there are any: nobody writes some that are not to be run."""
    hooks, word = table.get("hooks"), table.get("consistency")
    if hooks is not None:
        entries = hooks.table(frozenset({"before_snapshot", "after_snapshot", "timeout"}))
        found.before = _hooks(entries.get("before_snapshot"))
        found.after = _hooks(entries.get("after_snapshot"))
        if "timeout" in entries:
            found.hook_timeout = entries["timeout"].seconds()
        found.consistency = "hook"
    if word is not None:
        found.consistency = word.choice(rules.CONSISTENCY) or "crash"
        if hooks is not None and found.consistency != "hook":
            word.wrong("`hooks` are run only with `hook`")
    if found.consistency == "hook" and not (found.before or found.after):
        (word or table["hooks"]).wrong("needs `hooks` with `before_snapshot` or `after_snapshot`")


def _hooks(where: Where | None) -> Hooks:
    found = []
    for item in where.items() if where is not None else ():
        entries = item.table(frozenset({"service", "argv"}))
        if set(entries) != {"service", "argv"}:
            item.wrong("needs `service` and `argv`")
            continue
        found.append((entries["service"].text(), _words(entries["argv"])))
    return tuple(found)


def service_section(where: Where | None) -> ServiceSection:
    """Read a service's section."""
    found = ServiceSection()
    table = where.table(SERVICE_KEYS) if where is not None else {}
    if (process := table.get("process")) is not None:
        _process(process, found)
    if (health := table.get("health")) is not None:
        found.health = _health(health)
    if (secrets := table.get("secrets")) is not None:
        found.secrets = tuple(item.name(rules.SECRET, "a secret's name") for item in secrets.items())
    return found


def _process(where: Where, found: ServiceSection) -> None:
    table = where.table(PROCESS_KEYS)
    if "argv" not in table:
        where.wrong("needs `argv`")
        return
    requirements = table.get("requirements")
    files = table["files"].table() if "files" in table else {}
    found.process = ProcessSpec(
        argv=_words(table["argv"]),
        requirements=tuple(item.literal() for item in requirements.items())
        if requirements is not None
        else (),
        files={name: item.sealable() for name, item in files.items()},
    )
    if (ports := table.get("ports")) is not None:
        found.ports = _ports(ports)
    if (data := table.get("data")) is not None:
        found.data = tuple(item.name(rules.VOLUME, "a volume's name") for item in data.items())


def _words(where: Where) -> tuple[str, ...]:
    """A list only: what is started without a shell is not written as one would in a shell."""
    return tuple(item.loose_text() for item in where.items())


def _ports(where: Where) -> tuple[Port, ...]:
    from fractal.manifest.document import Table

    if isinstance(where.node, Table):
        return tuple(
            Port(name=name, container=item.integer(0, 65535)) for name, item in where.table().items()
        )
    return tuple(Port(name=item.name(rules.PORT, "a port's name"), container=0) for item in where.items())


def _health(where: Where) -> HealthSpec:
    table: Mapping[str, Where] = where.table(HEALTH_KEYS)
    default = HealthSpec()
    return HealthSpec(
        test=_words(table["test"]) if "test" in table else (),
        http=table["http"].text() if "http" in table else "",
        port=table["port"].text() if "port" in table else "",
        interval=table["interval"].seconds() if "interval" in table else default.interval,
        timeout=table["timeout"].seconds() if "timeout" in table else default.timeout,
        retries=table["retries"].integer(1, 1000) if "retries" in table else default.retries,
        start_period=table["start_period"].seconds() if "start_period" in table else default.start_period,
    )
