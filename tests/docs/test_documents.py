"""The documents name nothing that is not there: links, anchors, files, modules, commands, options, settings, manifests."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
import tomllib
from dataclasses import fields
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import pytest

from fractal.cli.main import cli
from fractal.config.loading import parse as parse_config
from fractal.manifest import parse as parse_manifest
from fractal.plugins import Plugins

from .markdown import ROOT, Block, anchors, blocks, is_made, links, pages, prose, spans

PAGES = pages()
WRITTEN = [page for page in PAGES if not is_made(page)]
ALIASES = ("homeserver", "kitchen", "attic")
"""Commands in samples that are `homeserver`: the tutorial defines the other two."""
EXAMPLES = sorted((ROOT / "contrib" / "examples").glob("*.toml"))


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def test_the_documents_are_there() -> None:
    assert len(PAGES) > 30
    for page in ("README.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/README.md"):
        assert ROOT / page in PAGES


# --- links and files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_and_anchors_resolve(page: Path) -> None:
    for link in links(page):
        if re.match(r"[a-z]+:", link):
            assert link.startswith("https://"), link
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name(page)}: {link}"
        assert target.is_relative_to(ROOT), f"{name(page)}: {link} leads out of the project"
        if anchor:
            assert anchor in anchors(target), f"{name(page)}: {link}"


def test_every_document_is_reached_from_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    linked = {(index.parent / link.partition("#")[0]).resolve() for link in links(index)}
    wanted = {p for p in PAGES if p.is_relative_to(ROOT / "docs") and p != index}
    assert wanted <= linked, sorted(map(name, wanted - linked))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_that_are_named_exist(page: Path) -> None:
    for span in spans(page):
        path = re.fullmatch(r"((?:fractal|tests|contrib|docs|plugins)/[\w./*-]+)", span)
        if path and not any(list(at.glob(path[1].rstrip("/"))) for at in (ROOT, page.parent)):
            pytest.fail(f"{name(page)}: {span} does not exist")


@pytest.mark.parametrize("page", WRITTEN, ids=name)
def test_modules_that_are_named_exist(page: Path) -> None:
    for span in spans(page):
        if not re.fullmatch(r"fractal(\.[a-z_]+)+(\.[A-Za-z]\w*)*", span) or span in (
            "fractal.plugins",
            "fractal.commands",
        ):
            continue
        parts = span.split(".")
        for cut in range(len(parts), 0, -1):
            try:
                found: Any = importlib.import_module(".".join(parts[:cut]))
            except ModuleNotFoundError:
                continue
            for part in parts[cut:]:
                assert hasattr(found, part), f"{name(page)}: {span}"
                found = getattr(found, part)
            break


def test_documents_that_the_code_names_exist() -> None:
    for folder in ("fractal", "contrib", "tests", "plugins"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix not in (".py", ".toml", ".yml", ".service", ".conf") or not path.is_file():
                continue
            for document in re.findall(r"\bdocs/[\w/.-]+\.md\b", path.read_text(encoding="utf-8")):
                assert (ROOT / document).is_file(), f"{path.relative_to(ROOT)} names {document}"


# --- commands --------------------------------------------------------------------------------------------------------


def command_lines(text: str) -> list[str]:
    """Each call of `homeserver` in a piece of shell, without what stands around it."""
    joined = text.replace("\\\n", " ")
    found = []
    for line in joined.splitlines():
        line = re.sub(r"^\s*(?:\$ |sudo )", "", line)
        for start in re.finditer(rf"(?:^|\$\(|\| |; )({'|'.join(ALIASES)}) (?=\S)", line):
            rest = line[start.end() :]
            end = re.search(r"\)|(?<!2)>>? |\||;|&(?!&)|  +#|\s2>", _unquoted(rest))
            found.append(rest[: end.start()] if end else rest)
    return found


def _unquoted(text: str) -> str:
    """The text with quoted parts blanked out, of the same length."""
    return re.sub(r"'[^']*'|\"[^\"]*\"", lambda match: "q" * len(match[0]), text)


def check_parses(words: list[str], *, whole: bool) -> None:
    """Parse with the real command tree. `whole`: arguments too; else only that verbs and options exist."""
    command: click.Command = cli
    context = click.Context(cli, info_name="homeserver")
    path = ["homeserver"]
    rest = list(words)
    while isinstance(command, click.Group):
        options, rest = _leading_options(rest)
        _check_options(command, options, path)
        if not rest:
            return
        found = command.get_command(context, rest[0])
        assert found is not None, f"{' '.join(path)} has no {rest[0]!r}"
        context = click.Context(found, info_name=rest[0], parent=context)
        path.append(rest[0])
        command, rest = found, rest[1:]
    _check_options(command, [w for w in _before_separator(rest) if w.startswith("-")], path)
    if whole and "--help" not in rest:
        try:
            command.make_context(path[-1], rest, parent=context.parent)
        except click.exceptions.ClickException as error:
            pytest.fail(f"{' '.join(path)} {shlex.join(rest)}: {error.format_message()}")


def _leading_options(words: list[str]) -> tuple[list[str], list[str]]:
    options: list[str] = []
    while words and words[0].startswith("-"):
        options.append(words[0])
        words = words[2:] if words[0] == "--config" else words[1:]
    return options, words


def _before_separator(words: list[str]) -> list[str]:
    return words[: words.index("--")] if "--" in words else words


def _check_options(command: click.Command, options: list[str], path: list[str]) -> None:
    if command.name == "exec":
        return  # what follows the app's name is somebody else's
    known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
    for option in options:
        if re.fullmatch(r"-[a-z-]+", option.partition("=")[0]):
            assert option.partition("=")[0] in known, f"{' '.join(path)} has no option {option}"


def shell_blocks() -> list[Block]:
    found = [b for page in WRITTEN for b in blocks(page) if b.language in ("sh", "")]
    return [b for b in found if command_lines(b.text)]


@pytest.mark.parametrize("block", shell_blocks(), ids=lambda b: b.where)
def test_command_lines_parse(block: Block) -> None:
    for line in command_lines(block.text):
        if "[" in _unquoted(line) or re.match(r"(--config \S+ )?\"\$@\"", line):
            continue  # a usage line, or the definition of an alias
        words = shlex.split(re.sub(r"HS1-\.\.\.|\"?\$\w+\"?", "X", line))
        check_parses(words, whole=True)


@pytest.mark.parametrize("block", shell_blocks(), ids=lambda b: b.where)
def test_manifests_that_are_installed_are_in_the_catalog_or_written_by_the_page(block: Block) -> None:
    catalog = {path.stem for path in (ROOT / "fractal" / "catalog").glob("*.yml")}
    text = block.page.read_text(encoding="utf-8")
    for line in command_lines(block.text):
        words = shlex.split(line) if "[" not in line else []
        if words[:2] != ["app", "install"]:
            continue
        app, shown = words[2], text[: text.index(block.text.splitlines()[0])] + block.text
        if "/" in app:
            assert f"{Path(app).name}" in shown.replace(app, "") or "```yaml" in shown, (
                f"{block.where}: nothing says what {app} is"
            )
        elif app not in {"X", "APP", "NAME"} and "catalog add" not in shown:
            assert app in catalog, f"{block.where}: {app} is in no catalog"


PACKAGES = re.compile(r"pip install ([^'\n]*)'fractal-homeserver\[([^\]]*)\]'")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_packages_are_installed_from_where_they_are(page: Path) -> None:
    """There is no release: what is to be installed was built by `make wheels`."""
    offered = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for options, extras in PACKAGES.findall(page.read_text(encoding="utf-8")):
        assert "--find-links dist" in options or "testing" in extras, f"{name(page)}: [{extras}]"
        assert set(extras.split(",")) - {"..."} <= set(offered), f"{name(page)}: [{extras}]"


def test_the_tutorial_installs_what_its_configurations_name() -> None:
    """At home: each configuration's backends come with the packages of the step that it belongs to."""
    page = ROOT / "docs" / "tutorials" / "at-home.md"
    steps = re.split(r"^## ", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    offered = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    found = 0
    for step in steps:
        installed = {e for _, extras in PACKAGES.findall(step) for e in extras.split(",")}
        for text in re.findall(r"```toml\n(.*?)```", step, flags=re.DOTALL):
            tables = tomllib.loads(text).values()
            wanted = {t["backend"] for t in tables if "backend" in t} & set(offered)
            assert wanted and wanted <= installed, (step[:40], wanted - installed)
            found += 1
        stores = set(re.findall(r"store add \w+ (\w+)", step))
        assert stores <= {"sftp"}  # which the devices of step 2 have
    assert found == 2


@pytest.mark.parametrize("page", WRITTEN, ids=name)
def test_settings_of_stores_that_are_added_exist(page: Path) -> None:
    for block in blocks(page):
        if block.language not in ("sh", ""):
            continue
        for line in command_lines(block.text):
            words = shlex.split(line) if "store add" in line and "[" not in line else []
            if words[:2] != ["store", "add"]:
                continue
            at = next(i for i, word in enumerate(words) if "=" in word and not word.startswith("-"))
            record = every_plugin().store(words[at - 1])
            known = {one.name for one in fields(record.config)}
            given = {word.partition("=")[0] for word in words[at:] if "=" in word}
            assert given <= known, f"{block.where}: {given - known}"


@pytest.mark.parametrize(
    "line",
    [
        "homeserver app instal radicale",
        "homeserver app install",
        "homeserver app install radicale --nonsense",
        "homeserver app policy radicale --trust nobody",
        "sudo homeserver store add Shelf",
        'code=$(kitchen group invite --group) && echo "$code"',
        "kitchen app fork radicale --at 2h | tail",
    ],
)
def test_wrong_command_lines_are_found(line: str) -> None:
    (found,) = command_lines(line)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check_parses(shlex.split(found), whole=True)


def test_enough_command_lines_were_found() -> None:
    assert sum(len(command_lines(b.text)) for b in shell_blocks()) > 70


NOUNS = {*cli.commands, *getattr(cli, "lazy", {})}


@pytest.mark.parametrize("page", WRITTEN, ids=name)
def test_commands_in_running_text_exist(page: Path) -> None:
    for span in spans(page):
        words = re.split(r"\s+", span)
        if words[:2] == ["homeserver", "example"]:
            continue  # the command of the plugin to copy
        if words[0] == "homeserver":
            words = words[1:]
        elif len(words) < 2 or words[0] not in NOUNS or not re.fullmatch(r"[a-z]+", words[1]):
            continue
        if not words or any(
            "[" in w or (w.isupper() and w not in ("APP", "NAME", "STORE", "CODE", "FILE")) for w in words[:2]
        ):
            continue
        check_parses([w for w in words if w not in ("...", "NOUN", "VERB")], whole=False)


# --- samples ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_examples_are_sound_configurations(path: Path) -> None:
    config = parse_config(path.read_bytes(), path, Plugins([]))
    assert config.device.name


@cache
def every_plugin() -> Plugins:
    """The builtins and the plugins of this project, installed or not; their records need nothing that they do not bring."""
    found: dict[str, object] = {}
    for project in sorted((ROOT / "plugins").glob("*/pyproject.toml")):
        entries = tomllib.loads(project.read_text(encoding="utf-8"))["project"].get("entry-points", {})
        sys.path.insert(0, str(project.parent / "src"))
        offered = entries.get("fractal.plugins", {})  # none: a library of theirs
        found |= {name: importlib.import_module(at) for name, at in offered.items()}
    return Plugins([], found)


def samples(language: str) -> list[Block]:
    return [b for page in WRITTEN for b in blocks(page) if b.language == language]


def here_documents(suffix: str) -> list[tuple[str, str]]:
    """Files that blocks of shell write: where, and their text."""
    return [
        (f"{block.where} {found[1]}", found[2])
        for page in WRITTEN
        for block in blocks(page)
        for found in re.finditer(
            r"cat > (\S+) <<'?END'?\n(.*?)\nEND$", block.text, flags=re.MULTILINE | re.DOTALL
        )
        if found[1].endswith(suffix)
    ]


@pytest.mark.parametrize("block", samples("toml"), ids=lambda b: b.where)
def test_toml_samples_are_sound(block: Block) -> None:
    document = tomllib.loads(block.text)
    if "project" in document:
        assert set(document["project"]["entry-points"]) <= {"fractal.plugins", "fractal.commands"}
        return
    text = block.text if "device" in document else f'[device]\nname = "Sample"\n\n{block.text}'
    parse_config(text.encode(), ROOT / "sample.toml", every_plugin())


@pytest.mark.parametrize(("where", "text"), here_documents(".toml"), ids=lambda v: v.split()[0])
def test_configurations_that_samples_write_are_sound(where: str, text: str) -> None:
    assert where
    parse_config(text.replace("$PWD", "/somewhere").encode(), ROOT / "sample.toml", Plugins([]))


@pytest.mark.parametrize("block", samples("yaml"), ids=lambda b: b.where)
def test_manifest_samples_are_sound(block: Block) -> None:
    from fractal.builtin.process.check import refusals

    spec = parse_manifest(block.text, source=block.where)
    if any(service.process for service in spec.services):
        assert list(refusals(spec)) == []


def test_enough_samples_were_found() -> None:
    assert len(samples("toml")) >= 3
    assert len(samples("yaml")) >= 3
    assert len(here_documents(".toml")) == 2
    assert {p.name for p in EXAMPLES} == {"host.toml", "gateway.toml"}


# --- what must not be there ------------------------------------------------------------------------------------------

FORBIDDEN = (
    r"pypi\.org|pythonhosted|files\.python|registry\.npmjs|crates\.io|proxy\.golang|hub\.docker\.com|index-url",
    r"/work/|/tmp/build|\.\./shared|/root/",
    r"\b(?:TODO|FIXME|XXX)\b",
)
"""Hosts of package registries, places on a builder's machine, and what was put off."""


@pytest.mark.parametrize("page", [*PAGES, *EXAMPLES], ids=name)
def test_nothing_forbidden_is_said(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for pattern in FORBIDDEN:
        found = re.search(pattern, text)
        assert found is None, f"{name(page)}: {found[0] if found else ''}"
    assert str(ROOT) not in text


@pytest.mark.parametrize("page", WRITTEN, ids=name)
def test_headings_begin_at_one_and_skip_no_level(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    levels = [len(marks) for marks in re.findall(r"^(#{1,6}) ", text, flags=re.MULTILINE)]
    assert levels
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert prose(page).strip()
