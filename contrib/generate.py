"""Make everything that is derived from the code: the command line, the control API, the configuration, the plugin API, the log.

    python contrib/generate.py           write the files
    python contrib/generate.py --check   exit 1 and name those that are out of date

So that a distribution needs neither this tool nor a network to ship completions, man pages and the reference.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click
from click.shell_completion import get_completion_class

sys.path.insert(0, str(Path(__file__).resolve().parent))
ROOT = Path(__file__).resolve().parent.parent

from reference import cli_page, exit_codes_page, json_page, man_page  # noqa: E402 - after the path is set
from reference_api import log_entries_page, plugin_api_page  # noqa: E402
from reference_config import config_page  # noqa: E402

from fractal.cli.main import cli  # noqa: E402

PROGRAM = "homeserver"
NOT_OURS = ("config", "plugin")


def files() -> dict[str, str]:
    """Path below the root -> content."""
    made = {f"contrib/completions/{name}": _completion(shell) for shell, name in SHELLS.items()}
    for path, command in walk(cli, [PROGRAM]):
        if len(path) < 3:
            made[f"contrib/man/{'-'.join(path)}.1"] = man_page(path, command)
    unit = ROOT / "fractal/cli/data/homeserver.service"
    made["contrib/systemd/homeserver.service"] = unit.read_text(encoding="utf-8")
    made["docs/reference/cli.md"] = cli_page(list(walk(cli, [PROGRAM])))
    made["docs/reference/exit-codes.md"] = exit_codes_page()
    made["docs/reference/json-output.md"] = json_page()
    made["docs/reference/configuration.md"] = config_page()
    made["docs/reference/plugin-api.md"] = plugin_api_page()
    made["docs/reference/log-entries.md"] = log_entries_page()
    return made


SHELLS = {"bash": "homeserver.bash", "zsh": "_homeserver", "fish": "homeserver.fish"}


def walk(command: click.Command, path: list[str]) -> Iterator[tuple[list[str], click.Command]]:
    """Every command below `command`, itself first. Commands of installed plugins are not ours to document."""
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=path[-1])
        lazy = getattr(command, "lazy", {})
        for name in [*command.commands, *lazy]:
            found = command.get_command(context, name)
            assert found is not None
            yield from walk(found, [*path, name])


def _completion(shell: str) -> str:
    kind = get_completion_class(shell)
    assert kind is not None
    made = kind(cli, {}, PROGRAM, "_HOMESERVER_COMPLETE")
    # `source` of bash asks the installed bash for its version; the text itself does not depend on it.
    text = made.source_template % made.source_vars()
    return text.strip("\n") + "\n"


def outdated() -> list[str]:
    """Files that are not what they would be made as, and files that nothing makes."""
    made = files()
    stale = [
        name
        for name, content in made.items()
        if not (ROOT / name).is_file() or (ROOT / name).read_text(encoding="utf-8") != content
    ]
    for folder in ("contrib/completions", "contrib/man"):
        stale += [
            name
            for path in (ROOT / folder).iterdir()
            if (name := path.relative_to(ROOT).as_posix()) not in made and path.suffix != ".md"
        ]
    return sorted(stale)


def main() -> None:
    """See the module's docstring."""
    if "--check" in sys.argv[1:]:
        stale = outdated()
        for name in stale:
            print(f"{name} is out of date: python contrib/generate.py", file=sys.stderr)
        sys.exit(1 if stale else 0)
    for name, content in files().items():
        path = ROOT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
