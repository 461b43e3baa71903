"""`homeserver app check`: what a Compose file's keys come to, without any agent."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fractal.api.errors import ExitCode
from fractal.cli.brought import needed, unasked
from fractal.cli.given import as_given, beside, given_options, given_values, is_path, read_files, read_text
from fractal.cli.output import clean, show_facts, show_json
from fractal.cli.session import Session, json_option, pass_session

if TYPE_CHECKING:
    from fractal.api.building import ImageBuild
    from fractal.manifest import Checked


@click.command()
@click.argument("file", metavar="FILE")
@given_options
@json_option
@pass_session
def check(session: Session, file: str, as_json: bool, **options: Any) -> None:
    """Say what a Compose file's keys come to: honoured, without effect here, or refused; what it needs, and what will come of it.

    Exits with 0 if every key is understood, whatever `app install` needs besides. Needs no agent and changes nothing. FILE may be the
    name of an app of a catalog too, which the agent is asked for.
    """
    from fractal.manifest import check as check_manifest

    if is_path(file):
        text, files = read_text(Path(file)), read_files(Path(file))
        brings = beside(Path(file))
    else:
        # What its catalog has beside it, the agent looks for as it installs it.
        brings = _in_catalog
        text, files = session.call("catalog.show", {"app": file})["manifest"], {}
    checked = check_manifest(text, file, as_given({**given_values(options), "files": files}, brings))
    builds = [build for build, _ in checked.builds.values()]
    hidden = needed(unasked(Path(file), files, builds, options["read"]) if is_path(file) else ())
    show_json(_plain(checked, hidden)) if as_json else _show(checked, hidden)
    if checked.refused:
        click.get_current_context().exit(ExitCode.FAILED)


def _in_catalog(_: ImageBuild) -> str:
    return ""


def _plain(checked: Checked, hidden: Mapping[str, str]) -> dict[str, Any]:
    from fractal.manifest.report import reads, report

    return {
        "file": checked.source,
        "understood": not checked.refused,
        "honoured": [{"line": f.line, "key": f.key} for f in checked.honoured],
        "without_effect": [{"line": f.line, "key": f.key, "reason": f.text} for f in checked.idle],
        "refused": [{"line": f.line, "key": f.key, "reason": f.text} for f in checked.refused],
        "needs": [{"line": f.line, "key": f.key, "option": o, "reason": f.text} for o, f in checked.needs]
        + [{"line": 1, "key": "", "option": option, "reason": reason} for option, reason in hidden.items()],
        "empty_variables": [{"line": line, "name": name} for name, line in checked.unset],
        "reads": reads(checked),
        "report": report(checked),
    }


def _show(checked: Checked, hidden: Mapping[str, str]) -> None:
    from fractal.manifest.report import lines, reads_line

    for finding in checked.refused:
        click.echo(_line(checked.source, finding.line, finding.key, f"refused: {finding.text}"), err=True)
    for finding in checked.idle:
        click.echo(_line(checked.source, finding.line, finding.key, f"without effect here: {finding.text}"))
    for option, finding in checked.needs:
        click.echo(
            f"needs: {clean(option)}  ({clean(finding.key)}, line {finding.line}: {clean(finding.text)})"
        )
    for option, reason in hidden.items():
        click.echo(f"needs: {clean(option)}  ({clean(reason)})")
    if checked.refused:
        show_facts({name.capitalize(): text for name, text in reads_line(checked).items()})
    else:
        show_facts({name.capitalize(): text for name, text in lines(checked).items()})
        click.echo(
            f"Understood: {len(checked.honoured)} keys honoured, {len(checked.idle)} without effect here."
        )


def _line(source: str, line: int, key: str, text: str) -> str:
    return clean(f"{source}:{line}: {key + ': ' if key else ''}{text}")
