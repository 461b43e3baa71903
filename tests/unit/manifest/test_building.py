"""`build`: what of it is taken where the file brings its context, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from fractal.api.building import BUILT, ImageBuild
from fractal.api.errors import InvalidInput
from fractal.cli.main import cli
from fractal.manifest import Checked, Given, check, parse
from fractal.manifest.report import lines, report


def there(_: ImageBuild) -> str:
    return ""


def checked(text: str, given: Given | None = None) -> Checked:
    return check(text, "app.yml", given or Given(brings=there))


LONG = """\
services:
  web:
    platform: linux/amd64
    build:
      context: ./web
      dockerfile: docker/Dockerfile
      args: {VERSION: "${VERSION:-1}", NAME: , GONE: , DEBUG: true}
      labels: [a.b=c]
      target: prod
      network: none
      no_cache: true
      pull: true
      extra_hosts: ["db:10.0.0.1", "api=10.0.0.2"]
      shm_size: 1m
      tags: [x]
      cache_from: [y]
      privileged: false
      ssh: []
"""


def test_all_words_of_a_build_are_read() -> None:
    found = checked(LONG, Given(brings=there, values={"NAME": "ada"}))
    assert not found.refused and not found.needs
    ((image, (build, first)),) = found.builds.items()
    assert (image, first) == (f"{BUILT}/web:unbuilt", False)
    assert build == ImageBuild(
        name="web",
        context="web",
        dockerfile="docker/Dockerfile",
        args={"VERSION": "1", "NAME": "ada", "DEBUG": "true"},
        labels={"a.b": "c"},
        hosts={"db": "10.0.0.1", "api": "10.0.0.2"},
        target="prod",
        network="none",
        platform="linux/amd64",
        shm_size=1 << 20,
        fresh=True,
        pull=True,
    )
    assert {f.key.rpartition(".")[2] for f in found.idle} == {"tags", "cache_from"}
    assert "services.web.build.args" in {f.key for f in found.honoured}
    assert "built of web" in lines(found)["runs"]
    assert report(found)["builds"] == [{"image": image, "context": "web", "dockerfile": "docker/Dockerfile"}]


def test_a_dockerfile_may_stand_in_the_manifest() -> None:
    text = 'services: {web: {build: {dockerfile_inline: "FROM ${BASE}\\nRUN echo $$HOME"}}}'
    found = checked(text, Given(brings=there, values={"BASE": "x:1"}))
    ((build, _),) = found.builds.values()
    assert (build.inline, build.context) == ("FROM x:1\nRUN echo $HOME", ".")


@pytest.mark.parametrize(
    ("build", "problem"),
    [
        ("{context: ., dockerfile: A, dockerfile_inline: FROM x}", "only one of them"),
        *(
            (f"{{context: ., {key}: {value}}}", f"`{key}` is not supported")
            for key, value in (
                ("ssh", "[default]"),
                ("secrets", "[a]"),
                ("privileged", "true"),
                ("entitlements", "[network.host]"),
                ("additional_contexts", "{a: ../b}"),
                ("ulimits", "{nofile: 9}"),
            )
        ),
        ("{context: ., args: {A: '${MADE}'}}", "would stay in the image"),
        ("{context: ., contxt: x}", "did you mean 'context'?"),
    ],
)
def test_what_cannot_be_built_is_told_with_its_line(build: str, problem: str) -> None:
    text = f"services:\n  web:\n    build: {build}\nx-homeserver: {{secrets: {{generate: [MADE]}}}}\n"
    with pytest.raises(InvalidInput) as caught:
        parse(text, "app.yml", given=Given(brings=there))
    assert str(caught.value).startswith("app.yml:3: services.web.build")
    assert problem in str(caught.value)


def test_what_cannot_be_built_here_is_taken_as_an_image_from_elsewhere() -> None:
    """As where the context is not there; nothing that a build would reach is given away."""
    text = "services: {web: {build: {context: ., ssh: [default], network: host}}}"
    found = checked(text, Given(brings=there))
    assert (found.refused, [option for option, _ in found.needs]) == ((), ["--image web=IMAGE"])
    assert {one.key for one in found.idle} == {"services.web.build.ssh", "services.web.build.network"}
    assert not found.builds
    (web,) = parse(text, given=Given(brings=there, images={"web": "web:1"})).services
    assert web.image == "web:1"


@pytest.mark.parametrize(
    ("build", "problem"),
    [
        ("https://github.com/a/b.git", "'https://github.com/a/b.git' is not in the manifest's folder"),
        ("git@github.com:a/b", "'git@github.com:a/b' is not in the manifest's folder"),
        ("{context: 'service:base'}", "'service:base' is not in the manifest's folder"),
        ("../other", "'../other' is not in the manifest's folder"),
        ("/srv/other", "'/srv/other' is not in the manifest's folder"),
        ("a/../../b", "'a/../../b' is not in the manifest's folder"),
        ("{context: .., dockerfile: docker/Dockerfile}", "'..' is not in the manifest's folder"),
        ("{context: ., dockerfile: ../Dockerfile}", "'../Dockerfile' is not in the context"),
        ("{context: ., dockerfile: /etc/passwd}", "'/etc/passwd' is not in the context"),
    ],
)
def test_what_is_elsewhere_is_not_built_and_an_image_is_asked_for(build: str, problem: str) -> None:
    text = f"services:\n  web:\n    build: {build}\n"
    found = check(text, given=Given(brings=there))
    ((option, need),) = found.needs
    assert (option, need.line, found.refused, found.builds) == ("--image web=IMAGE", 3, (), {})
    assert problem in need.text
    named = parse(text, given=Given(brings=there, images={"web": "ada/web"}))
    assert named.services[0].image == "ada/web"
    beside = check(text + "    image: ada/web\n", given=Given(brings=there))
    assert not beside.needs and problem in beside.idle[0].text


def test_what_is_elsewhere_is_read_for_the_rest_of_its_keys_all_the_same() -> None:
    text = "services: {web: {build: {context: .., contxt: x}}}"
    (refused,) = checked(text).refused
    assert refused.key == "services.web.build.contxt"


def test_an_image_with_a_name_stands_in_for_what_cannot_be_built() -> None:
    text = "services: {web: {image: ada/web, build: {context: ., ssh: [default]}}}"
    found = checked(text)
    assert not found.refused and not found.needs and not found.builds
    assert found.spec is not None and found.spec.services[0].image == "ada/web"
    assert [f.key for f in found.idle] == ["services.web.build.ssh", "services.web.build"]
    gone = Given(brings=lambda build: f"no folder {build.context}")
    assert not checked("services: {web: {image: ada/web, build: ./web}}", gone).needs
    (need,) = checked("services: {web: {build: ./web}}", gone).needs
    assert need[0] == "--image web=IMAGE" and "no folder web" in need[1].text


@pytest.mark.parametrize(
    ("policy", "built", "first"),
    [("", True, True), ("build", True, False), ("always", False, False), ("if_not_present", False, False)],
)
def test_whether_an_image_with_a_name_is_built_is_as_in_compose(
    policy: str, built: bool, first: bool
) -> None:
    line = f"pull_policy: {policy}, " if policy else ""
    text = f"services: {{web: {{{line}image: ada/web, build: .}}, worker: {{image: ada/web}}}}"
    found = checked(text)
    assert bool(found.builds) is built
    if not built:
        return
    assert found.builds["ada/web"][1] is first
    name = f"{BUILT}/web:{'0' * 64}"
    spec = parse(text, given=Given(brings=there, built={"ada/web": name}))
    assert [service.image for service in spec.services] == [name, name]
    # As with `app update --set`: what was built stays, though nothing is beside the manifest then.
    again = parse(text, given=Given(images={"web": name, "worker": name}))
    assert [service.image for service in again.services] == [name, name]


def test_two_ways_to_build_one_image_are_refused() -> None:
    text = "services: {a: {image: x, build: ./a}, b: {image: x, build: ./b}}"
    assert "another service builds x too" in checked(text).refused[0].text


@pytest.mark.parametrize("second", ["web: {build: ./b}", "c: {image: 'ada/web', build: ./b}"])
def test_no_build_is_given_the_context_of_another(second: str) -> None:
    """They travel by the name of a service, or of an image."""
    first = "{image: web, build: ./a}" if second.startswith("web") else "{image: 'ada/web', build: ./a}"
    problem = checked(f"services:\n  a: {first}\n  {second}\n").refused[0]
    assert problem.line == 3 and ("rename one" in problem.text or "not alike" in problem.text)


def test_an_image_that_is_given_is_not_built() -> None:
    found = checked("services: {web: {build: .}}", Given(brings=there, images={"web": "my/web:1"}))
    assert found.spec is not None and found.spec.services[0].image == "my/web:1" and not found.builds


def test_a_file_is_checked_with_what_is_beside_it(tmp_path: Path) -> None:
    (tmp_path / "app.yml").write_text("services:\n  web:\n    build: {context: ./web, ssh: []}\n")
    told = CliRunner().invoke(cli, ["app", "check", str(tmp_path / "app.yml"), "--json"])
    assert told.exit_code == 0, "every key is understood; what is built is needed by who installs it"
    (need,) = json.loads(told.stdout)["needs"]
    assert (need["line"], need["option"]) == (3, "--image web=IMAGE")
    assert "is no folder beside the manifest" in need["reason"]
    (tmp_path / "web").mkdir()
    (tmp_path / "web/Dockerfile").write_text("FROM scratch")
    told = CliRunner().invoke(cli, ["app", "check", str(tmp_path / "app.yml"), "--json"])
    found = json.loads(told.stdout)
    assert (told.exit_code, found["needs"]) == (0, [])
    assert {"line": 3, "key": "services.web.build"} in found["honoured"]
    assert found["report"]["builds"][0]["context"] == "web"
