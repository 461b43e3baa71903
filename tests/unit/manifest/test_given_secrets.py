"""A secret that somebody gives never comes to stand in clear where it would be seen, unless they allow just that."""

from __future__ import annotations

import pytest

from fractal.api.errors import InvalidInput
from fractal.manifest import Given, parse
from fractal.manifest.plain import to_plain_spec

CANARY = "s3cr3t-canary"
HOOK = "x-homeserver: {hooks: {before_snapshot: [{service: db, argv: [sh, -c, 'echo ${OTHER}']}]}}\n"
PLACES = {
    "a hook": (HOOK, ""),
    "a command's environment": ("", "    post_start: [{command: [x], environment: {Q: '${OTHER}'}}]\n"),
    "a command's environment as a list": (
        "",
        "    pre_stop: [{command: [x], environment: ['Q=${OTHER}']}]\n",
    ),
    "a command's user": ("", "    pre_stop: [{command: [x], user: '${OTHER}'}]\n"),
    "a command's folder": ("", "    pre_stop: [{command: [x], working_dir: '/${OTHER}'}]\n"),
    "an image": ("", "    image: 'postgres:${OTHER}'\n"),
}


def manifest(place: str) -> str:
    top, service = PLACES[place]
    image = "" if "image:" in service else "    image: postgres\n"
    return f"name: x\n{top}services:\n  db:\n{image}{service}"


@pytest.mark.parametrize("place", PLACES)
def test_it_is_refused_by_name_and_never_repeated(place: str) -> None:
    given = Given(values={"OTHER": CANARY}, hidden=frozenset({"OTHER"}))
    with pytest.raises(InvalidInput, match="visible-secret:OTHER") as refused:
        parse(manifest(place), given=given)
    assert CANARY not in str(refused.value)


@pytest.mark.parametrize("place", PLACES)
def test_what_is_no_secret_stands_there_in_clear(place: str) -> None:
    spec = parse(manifest(place), given=Given(values={"OTHER": "plain"}))
    assert "plain" in str(to_plain_spec(spec)) and spec.values == {"OTHER": "plain"}


def test_what_is_allowed_is_still_not_among_the_values_that_are_shown() -> None:
    allowed = frozenset({"visible-secret:OTHER"})
    spec = parse(
        manifest("an image"),
        given=Given(values={"OTHER": "17"}, hidden=frozenset({"OTHER"}), allowed=allowed),
    )
    assert spec.services[0].image == "postgres:17" and "OTHER" not in spec.values


@pytest.mark.parametrize("key", ["before_snapshot", "after_snapshot"])
def test_a_generated_secret_in_a_hook_is_refused(key: str) -> None:
    hook = f"{{{key}: [{{service: db, argv: [sh, -c, 'echo ${{PASSWORD}}']}}]}}"
    with pytest.raises(InvalidInput, match="`ps`"):
        parse(
            f"name: x\nx-homeserver: {{secrets: {{generate: [PASSWORD]}}, hooks: {hook}}}\n"
            "services: {db: {image: postgres}}\n"
        )
