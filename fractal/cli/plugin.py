"""`homeserver plugin`: needs no agent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from fractal.api.errors import BackendError, ExitCode, NotFound
from fractal.cli.output import clean, show_facts, show_json, show_table
from fractal.cli.pairs import name_values
from fractal.cli.session import Session, json_option, pass_session

if TYPE_CHECKING:
    from fractal.api.backend import Backend, Probe
    from fractal.plugins import Plugins

KIND = click.Choice(["runtime", "snapshot", "store", "transport", "authority", "coordination", "catalog"])
kind_option = click.option("--kind", type=KIND, help="Where backends of several kinds have this name.")


@click.group()
def plugin() -> None:
    """List, show and check plugins."""


@plugin.command("list")
@json_option
def list_(as_json: bool) -> int:
    """List all installed plugins and the backends that they offer. Loads each of them.

    Exit status 7 if one of them is broken.
    """
    plugins = _everything()
    found = [
        {
            "plugin": p.name,
            "distribution": p.distribution,
            "kind": kind,
            "name": name,
            "summary": record.summary,
        }
        for p in plugins.all()
        for kind, records in p.backends.items()
        for name, record in ((_full(p.name, r), r) for r in records.values())
    ]
    others: list[dict[str, Any]] = [
        {"plugin": p.name, "observer": p.observer is not None, "checks": [c.name for c in p.checks]}
        for p in plugins.all()
        if p.observer is not None or p.checks
    ]
    broken = [{"plugin": b.plugin, "reason": b.reason} for b in plugins.broken]
    if as_json:
        show_json({"backends": found, "others": others, "broken": broken})
    else:
        rows = [(f["kind"], f["name"], f["plugin"], f["summary"]) for f in found]
        for other in others:
            what = ["observes events"] * other["observer"] + [f"checks {name}" for name in other["checks"]]
            rows.append(("other", other["plugin"], other["plugin"], ", ".join(what)))
        show_table(("KIND", "NAME", "PLUGIN", "WHAT IT IS"), rows)
        for problem in broken:
            click.echo(f"broken: {clean(problem['plugin'])}: {clean(problem['reason'])}", err=True)
    return ExitCode.PARTIAL if broken else ExitCode.OK


@plugin.command()
@click.argument("name")
@kind_option
@json_option
def show(name: str, kind: str | None, as_json: bool) -> None:
    """Show a backend: what it is, what it can, and its settings."""
    from fractal.config.schema import shown

    plugins = _everything()
    documents = []
    for found_kind, record in _find(plugins, name, kind):
        isolates = getattr(record, "isolates", True)
        documents.append(
            {
                "kind": found_kind,
                "name": name,
                "summary": record.summary,
                "api": record.api,
                "isolates": isolates,
                "capabilities": sorted(record.capabilities),
                "settings": shown(record),
            }
        )
    if as_json:
        show_json({"backends": documents})
        return
    for document in documents:
        _show_backend(document)


@plugin.command()
@click.argument("name")
@kind_option
@click.option(
    "--set", "pairs", multiple=True, metavar="KEY=VALUE", help="A setting, over the configured ones."
)
@json_option
@pass_session
def check(session: Session, name: str, kind: str | None, pairs: tuple[str, ...], as_json: bool) -> int:
    """Run the contract of its kind on a backend, on this device, as it is configured here.

    Works in a throw-away place beside the configured one and removes it afterwards. Exit status 1 if a test fails. Needs the extra
    fractal-homeserver[testing].
    """
    plugins = _everything()
    config = _config(session)
    reports = []
    for found_kind, record in _find(plugins, name, kind):
        settings = _settings(config, found_kind, name, record, name_values("--set", pairs))
        reports.append(_check_one(found_kind, name, record, settings))
    if as_json:
        show_json({"checks": reports})
    else:
        for report in reports:
            _show_report(report)
    return ExitCode.FAILED if any(not report["ok"] for report in reports) else ExitCode.OK


def _check_one(kind: str, name: str, record: Backend[Any, Any], settings: Any) -> dict[str, Any]:
    report: dict[str, Any] = {"kind": kind, "name": name, "ok": True, "probe": None, "tests": [], "note": ""}
    if record.probe is not None:
        probe = _probe(record, settings)
        report["probe"] = {"ready": probe.ready, "detail": probe.detail}
        if not probe.ready:
            return {**report, "ok": False}
    try:
        from fractal.testing.check import run_contract
    except ImportError as error:
        raise BackendError(
            f"the contract suites cannot be loaded ({error}): pip install 'fractal-homeserver[testing]'"
        ) from error
    outcomes, note = run_contract(kind, record, settings)
    tests = [{"test": o.test, "result": o.result, "detail": o.detail} for o in outcomes]
    ok = all(t["result"] not in ("failed", "error") for t in tests) and (bool(tests) or bool(note))
    return {**report, "tests": tests, "note": note, "ok": ok}


def _probe(record: Backend[Any, Any], settings: Any) -> Probe:
    import asyncio

    async def look() -> Probe:
        assert record.probe is not None
        async with asyncio.timeout(60.0):
            return await record.probe(settings)

    return asyncio.run(look())


def _everything() -> Plugins:
    from fractal.plugins import Plugins

    plugins = Plugins.discover()
    plugins.all()
    return plugins


def _full(plugin_name: str, record: Backend[Any, Any]) -> str:
    from fractal.plugins import full_name

    return full_name(plugin_name, record)


def _find(plugins: Plugins, name: str, kind: str | None) -> list[tuple[str, Backend[Any, Any]]]:
    kinds = [kind] if kind else list(KIND.choices)
    found = [(k, plugins.backend(k, name)) for k in kinds if name in plugins.names(k)]
    if found:
        return found
    for problem in plugins.broken:
        if problem.plugin == name.partition(":")[0]:
            raise BackendError(f"plugin {problem.plugin} is broken: {problem.reason}")
    known = sorted({n for k in kinds for n in plugins.names(k)})
    raise NotFound(f"no backend {name!r} is installed; there are: {', '.join(known)}")


def _config(session: Session) -> Any:
    """The device's configuration; None where there is none."""
    from fractal.config import load

    try:
        path = session.config
    except NotFound:
        return None
    return load(path)


def _settings(config: Any, kind: str, name: str, record: Backend[Any, Any], pairs: dict[str, str]) -> Any:
    """What this device configures for the backend, if it does, with `pairs` over it. Raises InvalidInput."""
    from fractal.api.errors import InvalidInput
    from fractal.config.convert import Unset, convert, field_types
    from fractal.config.problems import dotted
    from fractal.config.schema import plain

    values: dict[str, object] = {}
    chosen = getattr(config, kind, None)
    if chosen is not None and chosen.backend == name:
        settable = [key for key, (_, type_) in field_types(record.config).items() if type_ is not Unset]
        present = {key: plain(getattr(chosen.settings, key)) for key in settable}
        values = {key: value for key, value in present.items() if value is not None}
    converted = convert(record.config, {**values, **pairs}, texts=True)
    if converted.problems:
        raise InvalidInput("; ".join(f"--set {dotted(p.key)}: {p.message}" for p in converted.problems))
    return converted.value


def _show_backend(document: dict[str, Any]) -> None:
    facts = {
        "kind": document["kind"],
        "name": document["name"],
        "what it is": document["summary"],
        "abilities": ", ".join(document["capabilities"]),
    }
    if not document["isolates"]:
        facts["isolation"] = "none: apps run beside everything else on the device"
    show_facts(facts)
    rows = [
        (s["name"], s["type"], "(needed)" if s["required"] else str(s["default"]), s["help"])
        for s in document["settings"]
    ]
    show_table(("SETTING", "TYPE", "DEFAULT", "WHAT IT DOES"), rows)
    click.echo()


def _show_report(report: dict[str, Any]) -> None:
    click.echo(f"{report['kind']} {report['name']}")
    if report["probe"] is not None:
        click.echo(
            f"  {'ready' if report['probe']['ready'] else 'not ready'}: {clean(report['probe']['detail'])}"
        )
    for test in report["tests"]:
        if test["result"] in ("failed", "error"):
            click.echo(f"  {test['result']}: {clean(test['test'])}")
            click.echo("\n".join(f"    {clean(line)}" for line in test["detail"].splitlines()[-15:]))
        elif test["result"] == "skipped":
            click.echo(f"  skipped: {clean(test['test'])}")
    passed = sum(test["result"] == "passed" for test in report["tests"])
    if report["tests"]:
        click.echo(f"  {passed} of {len(report['tests'])} tests passed")
    if report["note"]:
        click.echo(f"  {report['note']}")
