"""Manifests that are meant to do harm: each refused with its line, in little time, and nothing of it in the wrong place."""

from __future__ import annotations

import time

import pytest

from fractal.manifest import check
from fractal.manifest.document import MAX_BYTES


def refusals(text: str) -> list[str]:
    found = check(text, "app.yml")
    assert found.spec is None
    for finding in found.refused:
        assert 0 < finding.line <= text.count("\n") + 1
        assert (finding.key + finding.text).isprintable(), "a name from the file moves a terminal's cursor"
    return [f"{f.line}: {f.key}: {f.text}" for f in found.refused]


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{n}: &{n} [{', '.join([f'*{before}'] * 9)}]\n" for before, n in zip("abcdefgh", "bcdefghi", strict=True)
)
NESTED = "services: " + "{a: " * 2000 + "x" + "}" * 2000


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("x" * (10 << 20), f"longer than {MAX_BYTES} bytes", id="10 MB"),
        pytest.param("# " + "\N{GREEK SMALL LETTER PI}" * (MAX_BYTES // 2), "longer than", id="1 MB of pi"),
        pytest.param(BOMB, "aliases", id="a bomb of aliases"),
        pytest.param(NESTED, "levels", id="nested 2000 deep"),
        pytest.param("services: {main: {image: x}, main: {image: y}}", "given twice", id="a service twice"),
        pytest.param("services: {main: {image: x, image: y}}", "given twice", id="a key twice"),
        pytest.param("services: {a: {image: x}}\nx: !!python/object/apply:os.system [id]", "tags", id="a tag"),
        pytest.param("services: {a: {image: x, depends_on: [b]}, b: {image: x, depends_on: [a]}}", "circle", id="a circle"),
        pytest.param("services: {a: {image: x, depends_on: [a]}}", "circle", id="itself"),
        pytest.param('services: {"a\\nb": {image: x}}', "cannot be a service's name", id="a name of two lines"),
        pytest.param('services: {"$(id)": {image: x}}', "cannot be a service's name", id="shell in a name"),
        pytest.param('services: {"-rf": {image: x}}', "cannot be a service's name", id="an option as a name"),
        pytest.param('services: {"../up": {image: x}}', "cannot be a service's name", id="a path as a name"),
        pytest.param('name: "../../etc"\nservices: {a: {image: x}}', "cannot be an app's name", id="a path of an app"),
        pytest.param("services: {a: {image: '-v/:/mnt'}}", "not an image's name", id="an option as an image"),
        pytest.param("services: {a: {image: 'x;reboot'}}", "not an image's name", id="shell in an image"),
        pytest.param('services: {a: {image: x, environment: {"A=B\\nC": d}}}', "cannot be a variable", id="two variables in a name"),
        pytest.param("services: {a: {image: x, volumes: ['./a/../../x:/x']}}", "leads out", id="up inside"),
        pytest.param("services: {a: {image: x, env_file: /etc/../../shadow}}", "leads out", id="a file of the device"),
        pytest.param("services: {a: {image: x}}\nsecrets: {s: {file: a/../../key}}", "leads out", id="a secret from above"),
        pytest.param("services: {a: {image: x, configs: [{source: c, target: ../../etc/passwd}]}}\nconfigs: {c: {content: x}}", "absolute path", id="a target above"),
        pytest.param("services: {a: {image: x}}\nx-homeserver: {data: {ignore: [../../..]}}", "no volume of this app", id="ignoring what is above"),
        pytest.param("services: {a: {image: x, ports: ['1-65535:1-65535']}}", "range", id="all ports"),
        pytest.param("services: {a: {image: x, ports: [{name: w, target: 1}, {name: w, target: 2}]}}", "named twice", id="a port's name twice"),
        pytest.param("services: {a: {image: 'x${" + "${" * 50 + "}'}}", "", id="variables without end"),
        pytest.param("services: {a: {image: x}}\nx-homeserver: {fields: {" + ", ".join(f"F{n}: {{}}" for n in range(101)) + "}}", "more than 100 fields", id="101 questions"),
        pytest.param('services: {a: {image: x}}\nx-homeserver: {fields: {A: {title: "\\e[2J"}}}', "not printable", id="a title that clears the screen"),
    ],
)  # fmt: skip
def test_harm_is_refused_with_its_line(text: str, words: str) -> None:
    begun = time.process_time()
    found = refusals(text)
    assert found and any(words in line for line in found), found
    # Not a figure: without its bounds, each of these would take hours.
    assert time.process_time() - begun < 30


def test_two_services_on_one_port_of_the_device_are_no_clash_as_none_is_taken() -> None:
    text = "services: {a: {image: x, ports: ['80:80']}, b: {image: x, ports: ['80:80']}}"
    assert not check(text).refused
