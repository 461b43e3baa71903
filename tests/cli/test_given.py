"""What is given for a manifest at the command line: files of values, and answers at a terminal."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from fractal.api.errors import InvalidInput
from fractal.cli.given import ask, read_values
from fractal.manifest.fields import FormField


def test_a_file_of_values_is_read_as_env_files_are_but_takes_dollars_as_they_are(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text("# mine\nexport A=1\nB = 'two words' # why\nC=\"a\\nb\"\nD=pa$$word$\n")
    second.write_text("A=2\n")
    assert read_values((str(first), str(second))) == {
        "A": "2",
        "B": "two words",
        "C": "a\nb",
        "D": "pa$$word$",
    }


@pytest.mark.parametrize(
    ("text", "said"), [("A=1\nB\n", "2: expected NAME=VALUE"), ("A=1\nA=2\n", "2: A: given twice")]
)
def test_a_file_that_cannot_be_read_is_told_with_its_line_and_no_value(
    tmp_path: Path, text: str, said: str
) -> None:
    file = tmp_path / "values"
    file.write_text(text)
    with pytest.raises(InvalidInput) as caught:
        read_values((str(file),))
    assert str(caught.value) == f"{file}:{said}"


def answered(one: FormField, typed: str) -> tuple[object, str]:
    answers = []

    @click.command()
    def question() -> None:
        answers.append(ask(one))

    result = CliRunner().invoke(question, input=typed)
    return (answers or ["aborted"])[0], result.output


def test_a_question_is_put_until_the_answer_fits() -> None:
    one = FormField(name="MAIL", type="email", title="Your address", help="For notices.", required=True)
    answer, shown = answered(one, "\nnobody\na@example.org\n")
    assert answer == "a@example.org"
    assert "For notices." in shown and "expected an e-mail address" in shown


def test_enter_leaves_what_is_so_anyway() -> None:
    assert answered(FormField(name="A", default="dark"), "\n") == (None, "A (Enter: dark): \n")
    assert answered(FormField(name="A"), "\n")[0] is None
    secret = FormField(name="A", type="secret", title="Password", generate="hex:8", low=8)
    assert answered(secret, "\n")[0] is None


def test_a_secret_is_not_shown_and_a_choice_says_what_there_is() -> None:
    answer, shown = answered(FormField(name="A", type="secret", required=True), "canary-1\n")
    assert answer == "canary-1" and "canary" not in shown
    one = FormField(name="A", type="choice", options={"a": "first", "b": ""}, default="a")
    answer, shown = answered(one, "c\nb\n")
    assert answer == "b" and "[a (first), b]" in shown and "expected one of a, b" in shown
