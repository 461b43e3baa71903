"""What is given for a manifest on the command line: values, secrets, permissions, images, and files beside it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fractal.cli.brought import refuse_unasked, unasked
from fractal.cli.output import clean
from fractal.cli.pairs import name_values

if TYPE_CHECKING:
    from fractal.api.building import ImageBuild
    from fractal.cli.session import Session
    from fractal.manifest.fields import FormField

F = TypeVar("F", bound=Callable[..., Any])


def given_options(function: F) -> F:
    """`--set`, `--set-file`, `--values`, `--allow`, `--image` and `--read`."""
    for option in (
        click.option(
            "--read",
            "read",
            multiple=True,
            metavar="PATH",
            help="Hidden file or folder beside the manifest that it may take along, as `app check` names it.",
        ),
        click.option(
            "--values",
            "value_files",
            multiple=True,
            metavar="FILE",
            help="Values for variables and fields, NAME=VALUE lines in a file; what --set says goes before.",
        ),
        click.option(
            "--image",
            "images",
            multiple=True,
            metavar="SERVICE=IMAGE",
            help="Image of a service that the manifest would build.",
        ),
        click.option(
            "--allow",
            "allow",
            multiple=True,
            metavar="WHAT",
            help="Let the app have something of the device, as `app check` names it. It cannot fail over then.",
        ),
        click.option(
            "--set-file",
            "--secret-file",
            "secret_file",
            multiple=True,
            metavar="NAME=FILE",
            help="Secret, or value for a variable, read from a file and never shown.",
        ),
        click.option(
            "--set",
            "--env",
            "env",
            multiple=True,
            metavar="NAME=VALUE",
            help="Value for a variable of the manifest. Others can see it in `ps` meanwhile: see --set-file.",
        ),
    ):
        function = option(function)
    return function


def given_values(options: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of the agent's commands; those that are not given are None."""
    return {
        "env": {**read_values(options["value_files"]), **name_values("--set", options["env"])} or None,
        "secrets": read_secrets(options["secret_file"]) or None,
        "allow": list(options["allow"]) or None,
        "images": name_values("--image", options["images"]) or None,
    }


def asked(
    manifest: str,
    source: str,
    given: dict[str, Any],
    *,
    everything: bool = False,
    brings: Callable[[ImageBuild], str] | None = None,
) -> dict[str, Any]:
    """`given`, and what somebody at the terminal answers for values that the manifest needs; with `everything`, for all fields."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        if everything:
            raise click.UsageError("--ask: nobody is at a terminal; give values by --set or --values")
        return {**given, "files": given["files"] or None}
    from fractal.manifest import check

    env, secrets = dict(given["env"] or {}), dict(given["secrets"] or {})
    checked = check(manifest, source, as_given(given, brings))
    needed = {option.removeprefix("--set ").removesuffix("=VALUE"): need for option, need in checked.needs}
    for one in checked.fields:
        if one.name in needed or (everything and one.name not in env and one.name not in secrets):
            needed.pop(one.name, None)
            answer = ask(one)
            if answer is not None:
                (secrets if one.secret else env)[one.name] = answer
    for name, need in needed.items():
        if f"--set {name}=VALUE" in dict(checked.needs):
            secrets[name] = click.prompt(f"{clean(name)} ({clean(need.text)})", hide_input=True, err=True)
    return {**given, "env": env or None, "secrets": secrets or None, "files": given["files"] or None}


def ask(one: FormField) -> str | None:
    """One field's answer; None to leave it as it is: its default, generated, or without value."""
    from fractal.manifest.fields import normal

    if one.help:
        click.echo(clean(one.help), err=True)
    title = clean(one.title or one.name)
    choices = ", ".join(f"{name} ({words})" if words else name for name, words in one.options.items())
    hint = f" [{clean(choices)}]" if choices else ""
    otherwise = "made for you" if one.generate else one.default if one.default is not None else ""
    shown = f" (Enter: {clean(otherwise) or 'none'})" if not one.required else ""

    def read(text: str) -> str:
        try:
            return normal(one, text) if text or one.required else ""
        except ValueError as error:
            raise click.UsageError(str(error)) from error

    answer: str = click.prompt(
        f"{title}{hint}{shown}",
        default=None if one.required else "",
        show_default=False,
        hide_input=one.secret,
        value_proc=read,
        err=True,
    )
    return answer or None


def as_given(given: Mapping[str, Any], brings: Callable[[ImageBuild], str] | None = None) -> Any:
    """The same for reading a manifest here; `brings` as in `Given`."""
    from fractal.manifest import Given

    secrets = given["secrets"] or {}
    return Given(
        values={**(given["env"] or {}), **secrets},
        hidden=frozenset(secrets),
        files=given["files"] or {},
        images=given["images"] or {},
        allowed=frozenset(given["allow"] or ()),
        brings=brings,
    )


def beside(manifest: Path) -> Callable[[ImageBuild], str]:
    """What of a manifest's builds has its context beside it, as `Given.brings`."""
    from fractal.api.build_context import why_not

    return lambda build: why_not(manifest.parent, build)


def sent_contexts(
    session: Session, manifest: str, path: Path, given: Mapping[str, Any], options: Mapping[str, Any]
) -> dict[str, str] | None:
    """Give the agent what the manifest's builds work on: by what they are called, ids. For a dry run nothing is sent.

    Raises click's usage error, InvalidInput, and the agent's own errors.
    """
    import tempfile

    from fractal.api.build_context import pack
    from fractal.manifest import check

    found = {}
    builds = [build for build, _ in check(manifest, str(path), as_given(given, beside(path))).builds.values()]
    refuse_unasked(path, unasked(path, (), builds, options["read"]))
    for build in builds:
        found[build.name] = ""
        if not options["dry_run"]:
            with tempfile.TemporaryFile() as archive:
                packed = pack(path.parent, build, archive)
                archive.seek(0)
                found[build.name] = session.client().send_context(archive, packed.bytes)
    return found or None


def is_path(app: str) -> bool:
    """Whether a manifest is named by its path, and not an app of a catalog."""
    return "/" in app or app.endswith((".yml", ".yaml"))


def read_text(path: Path) -> str:
    """Text of a file of the caller's own. Raises click's usage error."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise click.UsageError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise click.UsageError(f"{path}:{line}: not UTF-8 text") from error


def taken_along(manifest: Path, read: tuple[str, ...]) -> dict[str, str]:
    """As `read_files`, where they are sent on. Raises click's usage error for those that have to be named and are not."""
    found = read_files(manifest)
    refuse_unasked(manifest, unasked(manifest, found, (), read))
    return found


def read_files(manifest: Path) -> dict[str, str]:
    """Texts of the files that a manifest names and that are beside it. What is not there, its check tells."""
    from fractal.manifest.env_files import MAX_FILES, named, others, outside

    folder, found = manifest.parent.resolve(), dict[str, str]()
    waiting = [("", read_text(manifest))]
    while waiting:
        base, text = waiting.pop(0)
        more = others(text, base)
        for path in named(text, base):
            at = (folder / path).resolve()
            # A link that leads out of the folder is not followed: whoever wrote the manifest may have made it too.
            if path in found or outside(path) or not at.is_relative_to(folder) or not at.is_file():
                continue
            if len(found) >= MAX_FILES:
                return found
            found[path] = read_text(at)
            if path in more:
                waiting.append((more[path], found[path]))
    return found


def read_values(files: tuple[str, ...]) -> dict[str, str]:
    """The values of all files, later ones first in rank. Raises click's usage error, InvalidInput."""
    from fractal.manifest.env_files import given

    found: dict[str, str] = {}
    for file in files:
        found |= given(read_text(Path(file)), file)
    return found


def read_secrets(pairs: tuple[str, ...]) -> dict[str, str]:
    """NAME=FILE pairs as name -> content without its last newline. Raises click's usage error."""
    return {
        name: read_text(Path(file)).removesuffix("\n")
        for name, file in name_values("--set-file", pairs).items()
    }
