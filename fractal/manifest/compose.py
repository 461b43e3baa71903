"""A Compose file to an `AppSpec`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from fractal.api.app import AppSpec, Port, ServiceSpec
from fractal.api.building import ImageBuild
from fractal.api.errors import InvalidInput
from fractal.manifest import including, keys, networks, reaching, routed, rules, secret_forms, top, whole
from fractal.manifest.document import Finding, Node, Problems, Table, read
from fractal.manifest.fields import FormField, form_fields, normal
from fractal.manifest.homeserver import AppSection, app_section, generated_secrets
from fractal.manifest.keys import OPTION_KEYS
from fractal.manifest.naming import with_aliases
from fractal.manifest.service import Around, service
from fractal.manifest.values import Given, Where

__all__ = ["OPTION_KEYS", "Checked", "check", "describe", "parse"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What every key of a Compose file comes to. A key is in one of the lists."""

    source: str
    spec: AppSpec | None
    """None if something is refused."""
    honoured: tuple[Finding, ...] = ()
    idle: tuple[Finding, ...] = ()
    """Without effect here, with the reason."""
    refused: tuple[Finding, ...] = ()
    needs: tuple[tuple[str, Finding], ...] = ()
    """(option that whoever installs it has to give, why)."""
    unset: tuple[tuple[str, int], ...] = ()
    """(variable that is empty because it has no value, line)."""
    granted: tuple[tuple[str, Finding], ...] = ()
    """(what of the device it was allowed to have, why it is needed)."""
    fields: tuple[FormField, ...] = ()
    """What the manifest asks for."""
    builds: Mapping[str, tuple[ImageBuild, bool]] = field(default_factory=dict)
    """Image as the specification calls it -> how it is built, and whether it is first looked for by its name."""
    files: tuple[str, ...] = ()
    """Paths of the files that came with it."""


def parse(
    text: str, source: str = "manifest", files: Mapping[str, str] | None = None, given: Given | None = None
) -> AppSpec:
    """The app that a manifest describes. Raises InvalidInput with every problem, one `SOURCE:LINE: key: message` per line.

    `files` are the texts of files that it names (`env_files.named`). Where the text gives no `name`, the app is called
    after `source` (a file's name without its suffix). What it needs and is not given is a problem like any other.
    """
    problems = Problems(source)
    given = given or Given()
    spec = _read(text, problems, replace(given, files={**given.files, **(files or {})}))
    problems.refuse_needs()
    problems.check()
    assert spec is not None
    return spec


def check(text: str, source: str = "manifest", given: Given | None = None) -> Checked:
    """What is honoured, without effect, refused and needed. Raises nothing for any text."""
    problems, spec, form = Problems(source), None, list[FormField]()
    try:
        spec = _read(text, problems, given or Given(), form)
    except InvalidInput as error:
        if not problems.refused:
            problems.add(1, "", str(error).removeprefix(f"{source}:1: "))
    refused = {finding.key for finding in problems.refused}
    honoured = (
        Finding(line, key, "")
        for key, line in problems.known.items()
        if key not in refused and key not in problems.idle
    )
    return Checked(
        source=source,
        spec=None if refused else spec,
        honoured=tuple(honoured),
        idle=tuple(finding for key, finding in problems.idle.items() if key not in refused),
        refused=tuple(problems.refused),
        needs=tuple(problems.needs.items()),
        unset=tuple(
            (name, line)
            for name, line in problems.unset.items()
            if f"--set {name}=VALUE" not in problems.needs and not routed.stands(name)
        ),
        granted=tuple(problems.granted.items()),
        fields=tuple(form),
        builds=dict(problems.builds),
        files=tuple(sorted(given.files)) if given is not None else (),
    )


def _read(text: str, problems: Problems, given: Given, form: list[FormField] | None = None) -> AppSpec | None:
    """The app, or None if there are problems; with needs that are not given it is only nearly right. Raises InvalidInput.

    Fields are added to `form`.
    """
    root = Where("", read(text, problems), problems, given=given)
    root = replace(root, node=including.whole(root))
    tables = root.table(keys.TOP_KEYS, extensions=True)
    tables = _with_form(tables, given, form if form is not None else [])
    for key in keys.TOP_IDLE.keys() & tables.keys():
        tables[key].idle(keys.TOP_IDLE[key])
    section = app_section(tables.get("x-homeserver"))
    declared, devices, engine = top.volumes(tables.get("volumes"))
    running, absent = whole.services(tables["services"]) if "services" in tables else ({}, {})
    around = Around(
        names=frozenset(running),
        absent=frozenset(absent),
        networks=networks.declared(tables.get("networks")),
        called=whole.called({**absent, **running}),
        devices=devices,
        engine=engine,
        configs=top.texts(tables.get("configs")),
        secrets=top.texts(tables.get("secrets")),
    )
    services = [service(where, around) for where in running.values()]
    reaching.reach_there(services, running)
    _look_through(absent, around, problems)
    services = with_aliases(networks.settled(services), problems.aliases, problems)
    if not services:
        problems.add(root.node.line, "services", f"an app needs at least one service{_older(root.node)}")
    if problems.lines:
        return None
    used = {name for one in services for name in one.secrets}
    forms = {f.name: f.generate for f in section.fields if f.generate}
    forms |= {name: form for name, form in problems.made.items() if not root.is_given(name)}
    made = tuple(dict.fromkeys((*section.secrets, *forms)))
    web_service, web_port, services = _web(section, services, problems)
    spec = AppSpec(
        name=_name(tables.get("name"), problems.source),
        services=tuple(_in_order(services, problems, tables["services"].node)),
        volumes=_all_volumes(declared, services),
        web_service=web_service,
        web_port=web_port,
        architectures=section.architectures,
        generated_secrets=made,
        secret_forms={name: form for name, form in forms.items() if form != secret_forms.DEFAULT},
        given_secrets=tuple(sorted(name for name in used - set(made) if root.has(name))),
        ignored=section.ignored,
        values=dict(sorted(problems.shown.items())),
        allowed=tuple(sorted(problems.granted)),
        consistency=section.consistency,
        before_snapshot=section.before,
        after_snapshot=section.after,
        hook_timeout=section.hook_timeout,
    )
    if not problems.lines:
        _check(spec, problems, root.node)
    return None if problems.lines else spec


def _older(node: Node) -> str:
    """What to do with a file of Compose's first version, which had its services at the top."""
    entries = node.entries if isinstance(node, Table) else {}
    at_top = any(
        isinstance(one, Table) and {"image", "build"} & one.entries.keys() for _, one in entries.values()
    )
    return ": put those at the top below `services:`" if at_top and "services" not in entries else ""


def _look_through(absent: Mapping[str, Where], around: Around, problems: Problems) -> None:
    """Services that no chosen profile starts: what they need is not needed, but what is refused of them is, as another choice
    may start them."""
    everyone = replace(around, names=around.names | absent.keys(), absent=frozenset())
    for where in absent.values():
        aside = Problems(problems.source)
        service(replace(where, problems=aside), everyone)
        problems.lines += aside.lines
        problems.refused += aside.refused


def describe(text: str, source: str = "manifest") -> Mapping[str, str]:
    """`name`, `title`, `summary` and `version` of a manifest, for catalogs. Raises InvalidInput."""
    found = check(text, source)
    problems = Problems(
        source, [f"{source}:{f.line}: {f.key + ': ' if f.key else ''}{f.text}" for f in found.refused]
    )
    problems.check()
    assert found.spec is not None
    root = Where("", read(text, problems), problems)
    section: AppSection = app_section(root.table().get("x-homeserver"))
    return {"name": found.spec.name, "title": found.spec.name, **section.about}


def _with_form(tables: Mapping[str, Where], given: Given, form: list[FormField]) -> dict[str, Where]:
    """The tables with what `x-homeserver` says of variables, which may stand anywhere. What is wrong with it is told when its
    own turn comes; what is wrong with the values, here."""
    section = tables.get("x-homeserver")
    ahead = section and replace(section, problems=Problems(""))
    fields = form_fields(ahead)
    form += fields
    secrets = {*generated_secrets(ahead), *(f.name for f in fields if f.generate)}
    values = dict(given.values)
    for one in fields:
        where = (
            section.at(f"fields.{one.name}", _field_node(section, one.name)) if section is not None else None
        )
        if where is None or (one.name in given.sealed and one.name not in values):
            continue
        if one.name in values:
            try:
                values[one.name] = normal(one, values[one.name])
            except ValueError as error:
                where.wrong(f"{one.name}: {error}")
        elif one.required and not one.generate and one.default is None:
            where.need(f"--set {one.name}=VALUE", one.title or one.help or f"{one.name} is required")
    hidden = given.hidden | {f.name for f in fields if f.secret}
    shown = {f.name: f.default for f in fields if f.default is not None}
    now = replace(given, values=values, hidden=hidden)
    return {
        name: replace(where, secrets=frozenset(secrets), given=now, defaults=shown)
        for name, where in tables.items()
    }


def _field_node(where: Where, name: str) -> Node:
    fields = where.node.entries["fields"][1] if isinstance(where.node, Table) else where.node
    return fields.entries[name][1] if isinstance(fields, Table) else fields


def _web(
    section: AppSection, services: list[ServiceSpec], problems: Problems
) -> tuple[str, str, list[ServiceSpec]]:
    """The service and port that a route leads to; where the file says only a number, the service has that port too."""
    if section.web_service or not problems.entrances:
        return section.web_service, section.web_port, services
    name, number = next(iter(problems.entrances.items()))
    found = next((one for one in services if one.name == name), None)
    if found is None:
        return "", "", services
    tcp = [port for port in found.ports if port.protocol == "tcp"]
    port = next((p for p in tcp if not number or str(p.container) == number), None)
    if port is None and number and 0 < int(number) <= 65535:
        port = Port(name=number, container=int(number))
        whole = replace(found, ports=(*found.ports, port))
        services = [whole if one is found else one for one in services]
    return (name, port.name, services) if port is not None else ("", "", services)


def _name(where: Where | None, source: str) -> str:
    if where is not None and not where.incomplete():
        return where.text()
    stem = source.rpartition("/")[2].partition(".")[0]
    return stem if rules.APP.fullmatch(stem) else "app"


def _all_volumes(declared: tuple[str, ...], services: list[ServiceSpec]) -> tuple[str, ...]:
    used = [mount.volume for one in services for mount in one.mounts if mount.volume]
    return tuple(dict.fromkeys([*declared, *used]))


def _in_order(services: list[ServiceSpec], problems: Problems, node: Node) -> list[ServiceSpec]:
    """Dependencies first, otherwise as written."""
    left, done = {s.name: s for s in services}, dict[str, ServiceSpec]()
    while left:
        ready = [s for s in left.values() if not set(s.depends_on) & set(left)]
        if not ready:
            problems.add(node.line, "services", f"{', '.join(sorted(left))}: need each other in a circle")
            problems.check()
        for one in ready:
            done[one.name] = left.pop(one.name)
    return list(done.values())


def _check(spec: AppSpec, problems: Problems, node: Node) -> None:
    for key, message in rules.problems(spec, whole=not problems.needs):
        problems.add(_line(node, key), key, message)


def _line(node: Node, key: str) -> int:
    """The line of a dotted key, or of the nearest key above it that exists."""
    line = node.line
    while key and isinstance(node, Table):
        # Names may hold dots themselves, so the longest one that fits is taken.
        fitting = [name for name in node.entries if key == name or key.startswith(f"{name}.")]
        if not fitting:
            break
        name = max(fitting, key=len)
        line, node = node.entries[name]
        key = key[len(name) + 1 :]
    return line
