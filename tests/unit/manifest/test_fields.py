"""`x-homeserver.fields`: what is asked, what is taken for an answer, and where answers end up."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

from fractal.api.errors import InvalidInput
from fractal.manifest import Given, check, parse
from fractal.manifest.fields import KEYS, TYPES, FormField, normal
from fractal.manifest.homeserver import APP_KEYS

FORM = """
services:
  main:
    image: "x:${VERSION}"
    environment:
      - MAIL=${MAIL}
      - OPTIONAL
      - PLAIN=${COUNT:-9}
      - TOKEN
x-homeserver:
  fields:
    VERSION: {default: 1.10}
    MAIL: {type: email, title: Your address, help: For notices.}
    OPTIONAL: {required: false}
    COUNT: {type: number, default: 3, min: 1, max: 5}
    TOKEN: {type: secret, generate: "hex:40", min: 8}
"""


def test_defaults_stand_where_nobody_gives_a_value_and_optional_ones_are_left_out() -> None:
    spec = parse(FORM, given=Given(values={"MAIL": "a@example.org"}))
    (main,) = spec.services
    assert main.image == "x:1.10"
    assert main.env == {"MAIL": "{secret.MAIL}", "PLAIN": "3", "TOKEN": "{secret.TOKEN}"}
    assert spec.generated_secrets == ("TOKEN",)
    assert spec.secret_forms == {"TOKEN": "hex:40"}
    assert spec.given_secrets == ("MAIL",)
    assert spec.values == {}  # a default is the manifest's: its next version may say another


def test_what_has_to_be_given_is_asked_for_by_its_title() -> None:
    checked = check(FORM)
    assert not checked.refused
    assert [(option, need.key, need.text) for option, need in checked.needs] == [
        ("--set MAIL=VALUE", "x-homeserver.fields.MAIL", "Your address")
    ]
    assert [one.name for one in checked.fields] == ["VERSION", "MAIL", "OPTIONAL", "COUNT", "TOKEN"]
    with pytest.raises(InvalidInput, match=r"fields\.MAIL: Your address; needs --set MAIL=VALUE"):
        parse(FORM)


def test_a_value_that_does_not_fit_is_refused_and_a_secret_never_repeated() -> None:
    given = Given(values={"MAIL": "nobody", "COUNT": "7", "TOKEN": "canary"})
    with pytest.raises(InvalidInput) as caught:
        parse(FORM, given=given)
    said = str(caught.value)
    assert "MAIL: expected an e-mail address" in said
    assert "COUNT: expected a number from 1 up to 5" in said
    assert "TOKEN: expected at least 8 characters" in said
    assert "canary" not in said


def test_a_given_value_goes_before_a_default_and_before_generating() -> None:
    given = Given(values={"MAIL": "a@b.c", "COUNT": "5", "TOKEN": "given-token", "OPTIONAL": "yes"})
    spec = parse(FORM, given=given)
    assert spec.services[0].env["OPTIONAL"] == "{secret.OPTIONAL}"
    assert set(spec.given_secrets) == {"MAIL", "COUNT", "OPTIONAL"}
    assert "given-token" not in repr(spec)


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("text", {"a b": "a b"}, ["a\nb", "a\0b", "x" * 2001]),
        ("number", {"1": "1", "-2.5": "-2.5"}, ["1e9", "", "0x1", "1,5"]),
        ("boolean", {"Yes": "true", "off": "false", "TRUE": "true"}, ["1", "maybe", ""]),
        ("email", {"a.b+c@example.org": "a.b+c@example.org"}, ["a", "a@", "@b", "a b@c", "a@b@c"]),
        ("url", {"https://a.example/x?y": "https://a.example/x?y"}, ["a.example", "ftp://a", "http://", "http://[::1"]),
        ("path", {"/srv/media": "/srv/media"}, ["srv", "/srv/../etc", "/a:/b", ""]),
        ("choice", {"a": "a"}, ["b", ""]),
    ],
)  # fmt: skip
def test_answers_by_type(kind: str, good: dict[str, str], bad: list[str]) -> None:
    one = FormField(name="X", type=kind, required=True, options={"a": ""})
    assert {value: normal(one, value) for value in good} == good
    for value in bad:
        with pytest.raises(ValueError, match="expected"):
            normal(one, value)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("A: {type: colour}", "fields.A.type: 'colour' is not one of boolean, choice, email"),
        ("A: {type: choice}", "fields.A: a choice needs `options`"),
        ("A: {type: secret, default: x}", "fields.A.default: a secret that everybody can read"),
        ("A: {type: number, default: x}", "fields.A.default: expected a number"),
        ("A: {generate: true}", "fields.A.generate: is for the type secret"),
        ("A: {type: secret, generate: 'rot13:9'}", "fields.A.generate: 'rot13:9' is not one of hex:64"),
        ("A: {type: secret, generate: 'hex:999'}", "fields.A.generate: 'hex:999' is not one of"),
        ("a-b: {}", "fields.a-b: 'a-b' cannot be a variable's name"),
        ("A: {tilte: x}", "fields.A.tilte: not supported; did you mean 'title'?"),
        ("A: [x]", "fields.A: expected a mapping"),
        ("A: {min: 1}", "fields.A.min: is for the type number or secret"),
    ],
)
def test_a_form_that_makes_no_sense_is_refused_with_its_line(line: str, problem: str) -> None:
    text = f"services: {{main: {{image: x}}}}\nx-homeserver:\n  fields:\n    {line}\n"
    refused = [f"{f.line}: {f.key}: {f.text}" for f in check(text).refused]
    assert any(found.startswith(f"4: x-homeserver.{problem}") for found in refused), refused


COOLIFY = textwrap.dedent("""\
    services:
      web:
        image: forge:1
        environment:
          - SERVICE_URL_FORGE_3000
          - ROOT=${SERVICE_URL_FORGE}
          - HOST=$SERVICE_FQDN_FORGE
          - DB=db://${SERVICE_USER_DB}:${SERVICE_PASSWORD_64_DB}@db
        healthcheck: {test: [CMD, ready, -U, "${SERVICE_USER_DB}"]}
      db:
        image: postgres:17
        environment: {POSTGRES_PASSWORD: $SERVICE_PASSWORD_64_DB, KEY: "${SERVICE_HEX_64_KEY}", B: $SERVICE_REALBASE64_B}
    """)


def test_values_that_coolifys_files_have_by_their_names() -> None:
    checked = check(COOLIFY)
    assert (checked.refused, checked.needs, checked.unset) == ((), (), ())
    spec = parse(COOLIFY, given=Given(host="git.example.org"))
    assert dict(spec.secret_forms) == {
        "SERVICE_USER_DB": "name:16",
        "SERVICE_PASSWORD_64_DB": "alphanumeric:64",
        "SERVICE_HEX_64_KEY": "hex:64",
        "SERVICE_REALBASE64_B": "base64:32",
    }
    web = next(s for s in spec.services if s.name == "web")
    assert web.env["SERVICE_URL_FORGE_3000"] == web.env["ROOT"] == "https://git.example.org"
    assert web.env["HOST"] == "git.example.org"
    assert (spec.web_service, spec.web_port) == ("web", "3000")
    assert [port.container for port in web.ports] == [3000]


def test_a_value_given_for_such_a_name_is_taken() -> None:
    spec = parse(COOLIFY, given=Given(values={"SERVICE_USER_DB": "forge"}))
    assert "SERVICE_USER_DB" not in spec.generated_secrets
    assert "SERVICE_USER_DB" in spec.given_secrets
    again = parse(COOLIFY, given=Given(sealed=frozenset({"SERVICE_USER_DB", "SERVICE_PASSWORD_64_DB"})))
    assert set(again.generated_secrets) >= {"SERVICE_USER_DB", "SERVICE_PASSWORD_64_DB"}


def test_a_password_in_a_command_line_still_has_to_be_allowed() -> None:
    text = "services: {main: {image: x, command: redis-server --requirepass $SERVICE_PASSWORD_REDIS}}"
    assert [o for o, _ in check(text).needs] == ["--allow visible-secret:SERVICE_PASSWORD_REDIS"]


IGNORING = """
services:
  main: {image: x, volumes: ["keep:/keep", "./media/thumbs:/thumbs"]}
x-homeserver: {data: {ignore: [%s]}}
"""


def test_what_is_ignored_is_named_as_in_volumes_and_has_to_be_one() -> None:
    assert parse(IGNORING % "./media/thumbs").ignored == ("media-thumbs",)
    (wrong,) = check(IGNORING % "cache").refused
    assert (wrong.line, wrong.key) == (4, "x-homeserver.data.ignore")
    assert "'cache' is no volume of this app" in wrong.text
    assert check(IGNORING % "../../etc").refused


def test_the_reference_says_what_the_code_knows() -> None:
    page = (Path(__file__).parents[3] / "docs/reference/manifest.md").read_text()
    for name, meaning in {**TYPES, **KEYS}.items():
        assert f"| `{name}` | {meaning} |" in page, name
    for key in APP_KEYS:
        assert re.search(rf"`x-homeserver\.{key}[`.]|`\.{key}`", page) or key == "hooks", key
