"""`homeserver example`."""

from __future__ import annotations

import click


@click.command()
@click.argument("words", nargs=-1)
def example(words: tuple[str, ...]) -> None:
    """Say WORDS back."""
    click.echo(" ".join(words) or "Nothing said.")
