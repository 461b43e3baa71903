"""Commands after a start and before a stop, as Compose files write them."""

from __future__ import annotations

import pytest

from fractal.api.app import Command
from fractal.api.errors import InvalidInput
from fractal.builtin.process.check import refusals
from fractal.manifest import parse
from fractal.manifest.plain import from_plain_spec, to_plain_spec

HEAD = "name: x\nx-homeserver: {secrets: {generate: [PASSWORD]}}\nservices:\n  db:\n    image: postgres\n    "


def test_both_forms_of_a_command_are_read_and_travel() -> None:
    text = HEAD + (
        "post_start:\n"
        "      - {command: chown -R 'a b' /x, user: root, working_dir: /x, environment: [A=1, B]}\n"
        "      - {command: [sh, -c, 'echo $$HOME'], privileged: false, environment: {A: 1, B: }}\n"
        "    pre_stop: [{command: ./flush.sh}]\n"
    )
    spec = parse(text)
    (db,) = spec.services
    assert db.post_start == (
        Command(argv=("chown", "-R", "a b", "/x"), user="root", working_dir="/x", env={"A": "1"}),
        Command(argv=("sh", "-c", "echo $HOME"), env={"A": "1"}),
    )
    assert db.pre_stop == (Command(argv=("./flush.sh",)),)
    assert from_plain_spec(to_plain_spec(spec)) == spec


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("post_start: [{user: root}]", "needs `command`"),
        ("post_start: [{command: x, privileged: true}]", "in a service that is privileged itself"),
        ("post_start: [{command: []}]", "nothing to run"),
        ("pre_stop: [{command: x, shell: sh}]", "shell"),
        ("pre_stop: [{command: x, environment: ['A B=1']}]", "variable's name"),
        ("pre_stop: [{command: 'x ${PASSWORD}'}]", "PASSWORD|secret"),
        ("pre_stop: [{command: x, environment: {A: '{secret.PASSWORD}'}}]", "secret"),
        ("pre_stop: [" + ", ".join(["{command: x}"] * 9) + "]", "more than 8"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_line(section: str, said: str) -> None:
    with pytest.raises(InvalidInput, match=said) as refused:
        parse(HEAD + section + "\n")
    assert str(refused.value).startswith("manifest:6:") or "visible-secret" in str(refused.value)


def test_a_process_has_none() -> None:
    spec = parse(
        "services:\n  a:\n    post_start: [{command: x}]\n    x-homeserver: {process: {argv: [x]}}\n", "app"
    )
    assert [(r.service, r.key) for r in refusals(spec)] == [("a", "post_start")]
