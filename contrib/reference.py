"""Pages and man pages out of the command tree, the exit codes and the control API's declarations."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from local_documents import LOCAL

from fractal.agent.control.contract import Items, Leaf, Nested, Shape, Spec
from fractal.agent.control.specs import SPECS
from fractal.api.errors import ExitCode

MADE = "<!-- Made by `python contrib/generate.py`; edit its sources instead. -->\n"
TEMPLATES = Path(__file__).resolve().parent / "reference-text"
EXIT_WORDS: Mapping[ExitCode, tuple[str, str]] = {
    ExitCode.OK: ("It is done, or what was asked for was printed.", ""),
    ExitCode.FAILED: (
        "It could not be done; the message says why.",
        "Read the message; `homeserver doctor`.",
    ),
    ExitCode.USAGE: ("The command line is wrong, or a name is ambiguous.", "`--help`; give an id."),
    ExitCode.CONFIG: ("The configuration is wrong.", "`homeserver config check` names every line."),
    ExitCode.MISSING: ("A plugin or a tool is not installed.", "Install the package that the message names."),
    ExitCode.UNREACHABLE: ("The agent, or another device, does not answer.", "`homeserver agent status`."),
    ExitCode.CONFLICT: (
        "Something else exists under that name, or the lease is lost.",
        "Look, then try again.",
    ),
    ExitCode.PARTIAL: (
        "It is under way and not finished within the time-out.",
        "Run the same command again.",
    ),
    ExitCode.NOT_FOUND: (
        "There is no such group, device, app, snapshot ...",
        "The message lists candidates.",
    ),
    ExitCode.DENIED: (
        "The group's rules, or the socket's owner, do not allow it.",
        "Ask an admin of the group.",
    ),
    ExitCode.INTERRUPTED: (
        "You pressed Ctrl-C. A change that had begun goes on in the agent.",
        "`homeserver status`.",
    ),
}


def cli_page(commands: list[tuple[list[str], click.Command]]) -> str:
    """docs/reference/cli.md."""
    parts = [MADE, "# Command line\n", template("cli.md")]
    for path, command in commands:
        parts.append(f"{'#' * min(len(path) + 1, 4)} `{' '.join(path)}`\n")
        parts.append(f"    {_usage(path, command)}\n")
        parts.append(_paragraphs(command.help or "") + "\n")
        rows = [(f"`{_option_names(o)}`", _option_help(o)) for o in _options(command)]
        if rows:
            parts.append(table(("Option", "Meaning"), rows))
    return "\n".join(parts).rstrip() + "\n"


def exit_codes_page() -> str:
    """docs/reference/exit-codes.md."""
    rows = [(str(int(code)), f"`{code.name}`", *EXIT_WORDS[code]) for code in ExitCode]
    return "\n".join(
        [
            MADE,
            "# Exit codes\n",
            template("exit-codes.md"),
            table(("Code", "Name", "Meaning", "What to do"), rows),
        ]
    )


def json_page() -> str:
    """docs/reference/json-output.md."""
    parts = [MADE, "# JSON output and the control API\n", template("json-output.md")]
    for name, shape in LOCAL.items():
        parts.append(f"### `homeserver {name} --json`\n")
        parts.append(table(("Field", "Type", "Meaning"), _fields(shape)))
    for spec in SPECS.values():
        parts.append(f"## `{spec.name}`\n")
        parts.append(f"{spec.summary} `POST /v1/{spec.name.replace('.', '/')}`\n")
        parts.append(_params_table(spec))
        parts.append("Result:\n")
        parts.append(table(("Field", "Type", "Meaning"), _fields(spec.result)))
        if spec.output is not None:
            parts.append("Each `output` line:\n")
            parts.append(table(("Field", "Type", "Meaning"), _fields(spec.output)))
    return "\n".join(parts).rstrip() + "\n"


def _params_table(spec: Spec) -> str:
    rows = [
        (f"`{name}`", param.kind.value + (", required" if param.required else ""), param.help)
        for name, param in spec.params.items()
    ]
    return table(("Parameter", "Type", "Meaning"), rows) if rows else "No parameters.\n"


def _fields(shape: Shape, prefix: str = "") -> list[tuple[str, str, str]]:
    rows: list[tuple[str, str, str]] = []
    for name, field in shape.items():
        match field:
            case Leaf():
                kind = field.kind.value + (" or null" if field.null else "")
                rows.append((f"`{prefix}{name}`", kind, field.help))
            case Nested():
                rows.append((f"`{prefix}{name}`", "object or null" if field.null else "object", field.help))
                rows += _fields(field.shape, f"{prefix}{name}.")
            case Items():
                rows.append((f"`{prefix}{name}`", "list of objects", field.help))
                rows += _fields(field.shape, f"{prefix}{name}[].")
    return rows


def template(name: str) -> str:
    """A hand-written part of a page."""
    return (TEMPLATES / name).read_text(encoding="utf-8")


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    lines += [" | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) for row in rows]
    return "\n".join(f"| {line} |" for line in lines) + "\n"


def _usage(path: list[str], command: click.Command) -> str:
    context = click.Context(command, info_name=path[-1])
    return " ".join([*path, *command.collect_usage_pieces(context)])


def _options(command: click.Command) -> list[click.Option]:
    return [p for p in command.params if isinstance(p, click.Option) and not p.hidden]


def _option_names(option: click.Option) -> str:
    names = ", ".join([*option.opts, *option.secondary_opts])
    if option.is_flag or option.count:
        return names
    if isinstance(option.type, click.Choice):
        return f"{names} [{'|'.join(map(str, option.type.choices))}]"
    return f"{names} {option.metavar or option.type.name.upper()}"


def _option_help(option: click.Option) -> str:
    text = option.help or ""
    default: Any = option.default
    if option.show_default and default not in (None, False):
        text += f" [default: {default:g}]" if isinstance(default, float) else f" [default: {default}]"
    return text.strip() or "-"


def _paragraphs(text: str) -> str:
    return "\n\n".join(" ".join(p.split()) for p in inspect.cleandoc(text).split("\n\n"))


def man_page(path: list[str], command: click.Command) -> str:
    """One page in man(7) macros: the program itself, or one noun with its verbs."""
    name = "-".join(path)
    parts = [f'.TH "{name.upper()}" "1" "" "Fractal HomeServer" "User commands"', ".SH NAME"]
    parts.append(f"{_roff(name)} \\- {_roff(command.get_short_help_str(200))}")
    parts += [".SH SYNOPSIS", f".B {_roff(_usage(path, command))}", ".SH DESCRIPTION"]
    parts += [f".PP\n{_roff(p)}" for p in _paragraphs(command.help or "").split("\n\n")]
    parts += _man_options(command, ".SH OPTIONS")
    if isinstance(command, click.Group):
        parts.append(".SH COMMANDS")
        for verb in [*command.commands, *getattr(command, "lazy", {})]:
            found = command.get_command(click.Context(command), verb)
            assert found is not None
            parts += _man_verb([*path, verb], found, whole=len(path) > 1)
    parts += [".SH EXIT STATUS"]
    for code in ExitCode:
        parts += [".TP", f".B {int(code)}", _roff(EXIT_WORDS[code][0])]
    parts += [
        ".SH SEE ALSO",
        "homeserver(1)" if len(path) > 1 else "homeserver-app(1), homeserver-group(1), homeserver-agent(1)",
    ]
    return "\n".join(parts) + "\n"


def _man_verb(path: list[str], command: click.Command, *, whole: bool) -> list[str]:
    if not whole:
        return [".TP", f".B {_roff(path[-1])}", _roff(command.get_short_help_str(200))]
    parts = [f".SS {_roff(_usage(path, command))}"]
    parts += [f".PP\n{_roff(p)}" for p in _paragraphs(command.help or "").split("\n\n")]
    return parts + _man_options(command, "")


def _man_options(command: click.Command, head: str) -> list[str]:
    options = _options(command)
    parts = [head] if head and options else []
    for option in options:
        parts += [".TP", f".B {_roff(_option_names(option))}", _roff(_option_help(option))]
    return parts


def _roff(text: str) -> str:
    text = re.sub(r"`([^`]*)`", r"\1", text).replace("\\", "\\e").replace("-", "\\-")
    return "\\&" + text if text[:1] in (".", "'") else text
