"""What is given for a manifest on the command line: values, secrets, permissions, images, and files beside it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from fractal.cli.pairs import name_values

F = TypeVar("F", bound=Callable[..., Any])


def given_options(function: F) -> F:
    """`--set`, `--set-file`, `--allow` and `--image`."""
    for option in (
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
        "env": name_values("--set", options["env"]) or None,
        "secrets": read_secrets(options["secret_file"]) or None,
        "allow": list(options["allow"]) or None,
        "images": name_values("--image", options["images"]) or None,
    }


def asked(manifest: str, path: Path, given: dict[str, Any]) -> dict[str, Any]:
    """`given`, and what somebody at the terminal answers for values that the manifest needs."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return {**given, "files": given["files"] or None}
    from fractal.manifest import check

    secrets = dict(given["secrets"] or {})
    for option, need in check(manifest, str(path), as_given(given)).needs:
        kind, _, name = option.removesuffix("=VALUE").partition(" ")
        if kind == "--set":
            secrets[name] = click.prompt(f"{name} ({need.text})", hide_input=True, err=True)
    return {**given, "secrets": secrets or None, "files": given["files"] or None}


def as_given(given: Mapping[str, Any]) -> Any:
    """The same for reading a manifest here."""
    from fractal.manifest import Given

    secrets = given["secrets"] or {}
    return Given(
        values={**(given["env"] or {}), **secrets},
        hidden=frozenset(secrets),
        files=given["files"] or {},
        images=given["images"] or {},
        allowed=frozenset(given["allow"] or ()),
    )


def read_text(path: Path) -> str:
    """Text of a file of the caller's own. Raises click's usage error."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{path}: {getattr(error, 'strerror', None) or 'not UTF-8 text'}") from error


def read_files(manifest: Path) -> dict[str, str]:
    """Texts of the files that a manifest names and that are beside it. What is not there, its check tells."""
    from fractal.manifest.env_files import named, outside

    folder = manifest.parent.resolve()
    found = {path: (folder / path).resolve() for path in named(read_text(manifest)) if not outside(path)}
    # A link that leads out of the folder is not followed: whoever wrote the manifest may have made it too.
    return {path: read_text(at) for path, at in found.items() if at.is_relative_to(folder) and at.is_file()}


def read_secrets(pairs: tuple[str, ...]) -> dict[str, str]:
    """NAME=FILE pairs as name -> content without its last newline. Raises click's usage error."""
    return {
        name: read_text(Path(file)).removesuffix("\n")
        for name, file in name_values("--set-file", pairs).items()
    }
