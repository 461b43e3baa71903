"""Compose files that name other ones, beside them or in folders of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from fractal.api.app import Mount
from fractal.cli.given import read_files
from fractal.manifest import Given, check, document, including, parse
from fractal.manifest.document import Problems, Table
from fractal.manifest.whole import MAX_NODES

MAIN = """
include: [db/compose.yml, {path: ../shared/net.yml}]
services:
  web:
    extends: {file: parts/web.yml, service: base}
    image: web
    networks: [outer]
    depends_on: [db]
"""
FILES = {
    "db/compose.yml": """
include: ["./more/cache.yml"]
services:
  db:
    image: postgres
    env_file: ./db.env
    volumes: ["./data:/data", "named:/named", "../own:/own", "/dev/null:/null"]
    secrets: [key]
    networks: [outer]
volumes: {named: }
secrets: {key: {file: key.txt}}
networks: {outer: {internal: true}}
""",
    "db/more/cache.yml": "services: {cache: {image: redis, volumes: [{type: bind, source: ./c, target: /c}]}}",
    "db/db.env": "A=1\n",
    "db/key.txt": "secret\n",
    "parts/web.yml": """
services:
  base: {extends: deeper, env_file: web.env, ports: [80]}
  deeper: {environment: {B: 2}, extends: {file: deep/deepest.yml, service: web}}
""",
    "parts/web.env": "C=3\n",
    "parts/deep/deepest.yml": "services: {web: {command: [run], volumes: ['./d:/d']}}",
    "above/shared/net.yml": "services: {side: {image: y, volumes: ['../z:/z']}}\nnetworks: {outer: {internal: true}}",
}


def test_what_a_file_names_is_found_and_its_paths_are_of_its_own_folder(tmp_path: Path) -> None:
    for path, text in {"compose.yml": MAIN, **FILES}.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    assert read_files(tmp_path / "compose.yml") == FILES
    spec = parse(MAIN, given=Given(files=FILES, allowed=frozenset({"host-path:/dev/null"})))
    services = {one.name: one for one in spec.services}
    assert services.keys() == {"web", "db", "cache", "side"}
    web, db = services["web"], services["db"]
    assert (web.argv, web.env, web.ports[0].container) == (("run",), {"B": "2", "C": "3"}, 80)
    assert web.mounts == (Mount(volume="parts-deep-d", target="/d"),)
    assert (db.env, db.files["/run/secrets/key"]) == ({"A": "1"}, "secret\n")
    assert [m.volume for m in db.mounts] == ["db-data", "named", "own", ""]
    assert services["cache"].mounts == (Mount(volume="db-more-c", target="/c"),)
    assert services["side"].mounts == (Mount(volume="above-z", target="/z"),)
    assert db.options["networks"] == '{"outer":true}'


ELSEWHERE = """
include:
  - {path: parts/a.yml, project_directory: .}
  - deep/e.yml
  - ../b.yml
  - /srv/c.yml
  - ~/d.yml
services: {web: {image: x}}
"""
ELSEWHERE_FILES = {
    "parts/a.yml": "services: {a: {image: x, env_file: a.env, volumes: ['./a:/a']}}",
    "deep/e.yml": """
services: {e: {image: x, environment: {E: 1}, volumes: ['e:/e']}}
volumes: {e: {driver_opts: {type: none, o: bind, device: ./e}}}
""",
    "a.env": "A=1",
    "above/b.yml": "services: {b: {image: x, env_file: ./b.env, volumes: ['./b:/b']}}",
    "above/b.env": "B=1",
    "root/srv/c.yml": "services: {c: {image: x, env_file: sub/c.env, volumes: ['./c:/c']}}",
    "root/srv/sub/c.env": "C=1",
    "home/d.yml": "services: {d: {image: x, env_file: d.env, volumes: ['./d:/d']}}",
    "home/d.env": "D=1",
}


def test_files_in_folders_of_others_are_looked_for_where_the_reference_says(tmp_path: Path) -> None:
    for path, text in {"compose.yml": ELSEWHERE, "b.env": "B=0", **ELSEWHERE_FILES}.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    files = read_files(tmp_path / "compose.yml")
    assert files == ELSEWHERE_FILES
    spec = parse(ELSEWHERE, given=Given(files=files, allowed=frozenset({"host-path:/srv/c"})))
    found = {one.name: one for one in spec.services}
    assert {name: dict(one.env) for name, one in found.items() if name != "web"} == {
        name: {name.upper(): "1"} for name in "abcde"
    }
    mounts = {name: [m.volume or m.host for m in one.mounts] for name, one in found.items()}
    assert mounts == {
        "web": [],
        "a": ["a"],
        "b": ["above-b"],
        "c": ["/srv/c"],
        "d": ["home-d"],
        "e": ["deep-e"],
    }


def test_keys_of_an_included_file_are_in_a_list_too() -> None:
    """What only the manifest itself says is refused there, and what nobody reads is told."""
    other = "name: other\nversion: '3'\nx-ours: 1\nservices: {b: {image: y}}\n"
    found = check("include: [a.yml]\nservices: {a: {image: x}}", given=Given(files={"a.yml": other}))
    assert not found.refused
    assert {one.key for one in found.idle} == {"include[0].name", "include[0].version"}


def test_what_is_not_there_is_needed() -> None:
    found = check(MAIN)
    assert {option for option, _ in found.needs} >= {"file db/compose.yml", "file above/shared/net.yml"}
    only = check("services: {web: {extends: {file: hw.yml, service: x}}}")
    assert not only.refused and [option for option, _ in only.needs] == ["file hw.yml"]


@pytest.mark.parametrize(
    ("text", "files", "words"),
    [
        (
            "include: [a.yml, b.yml]\nservices: {x: {image: w}}",
            {"a.yml": "services: {x: {image: y}}", "b.yml": "services: {x: {image: z}}"},
            "not alike",
        ),
        ("include: [a.yml]", {"a.yml": "include: [a.yml]\nservices: {x: {image: z}}"}, "includes itself"),
        (
            "include: [a.yml]",
            {"a.yml": "include: [{path: [c.yml, b.yml]}]", "b.yml": "include: [./a.yml]", "c.yml": "x-c: 1"},
            "includes itself",
        ),
        ("include: [a.yml]", {"a.yml": "services: [\n"}, "is no Compose file: a.yml:"),
        ("include: [{path: [a.yml], environment: {A: 1}}]", {}, "environment: not supported"),
        ("include: [{path: a.yml, env_file: a/../../x}]", {"a.yml": "x-a: 1"}, "leads out"),
        ("include: [{path: a.yml, env_file: x}]", {"a.yml": "x-a: 1", "x": "A B"}, "x:1: expected NAME"),
        ("include: a.yml", {}, "expected a list"),
        ("include: ['']", {}, "expected a file's path"),
        ("include: [.]", {}, "expected a file's path"),
        ("include: [a.yml]", {"a.yml": "sevices: {b: {image: y}}"}, "sevices: not supported"),
        ("include: [a.yml]", {"a.yml": "x-homeserver: {web: {service: b}}"}, "write it in the manifest"),
        ("include: [a.yml]", {"a.yml": "services: [b]"}, "services: expected a mapping"),
        ("include: [a.yml]\nservices: nothing", {"a.yml": "services: {b: {image: y}}"}, "expected a mapping"),
        ("include: [{project_directory: a}]", {}, "needs `path`"),
        (
            "services: {x: {image: y, extends: {file: a.yml, service: z}}}",
            {"a.yml": "{}"},
            "no other service of that file",
        ),
        (
            "services: {x: {image: y, extends: {file: a.yml, service: x}}}",
            {"a.yml": "services: {x: {extends: {file: a.yml, service: x}}}"},
            "extends this one itself",
        ),
        ("services: {x: {image: y, extends: {file: a/../../b.yml, service: x}}}", {}, "leads out"),
    ],
)
def test_what_cannot_be_one_file_is_refused(text: str, files: dict[str, str], words: str) -> None:
    found = check(text, given=Given(files=files))
    assert any(words in f"{one.key}: {one.text}" for one in found.refused), found.refused
    assert all(one.line >= 1 for one in found.refused)


SEVERAL = """
include:
  - path: [base/compose.yml, base/more.yml]
    env_file: [one.env, base/two.env]
  - {path: [base/compose.yml, base/more.yml], env_file: [one.env, base/two.env]}
services: {web: {image: x, depends_on: [db], environment: {TAG: "${TAG:-none}"}}}
"""
SEVERAL_FILES = {
    "base/compose.yml": """
include: [../side.yml]
services:
  db:
    image: "db:${TAG}"
    command: [serve]
    environment: {A: 1, COST: "$$5", HOST: "${HOST:-${SECOND}}", PLUS: "${TAG:+with}", LEFT: "${NOBODY:-$$left}"}
    volumes: ["./data:/data"]
volumes: {v: {labels: {a: b}}}
""",
    "base/more.yml": """
services: {db: {command: [run], environment: [B=2], volumes: ["./other:/data", "v:/v"]}}
volumes: {v: {labels: {c: d}}}
""",
    "side.yml": 'services: {side: {image: "side:${TAG}", environment: {OURS: "${OURS}"}}}',
    "one.env": "# what the included files are told\nTAG=one\nOURS=theirs\nSECOND='it costs $1'\n",
    "base/two.env": 'TAG="two" # the later one goes before\n',
}


def test_several_files_are_one_with_values_of_their_own(tmp_path: Path) -> None:
    """Later files go over earlier ones, what whoever installs it says over both, and nothing of it is seen outside of them."""
    for path, text in {"compose.yml": SEVERAL, **SEVERAL_FILES}.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    files = read_files(tmp_path / "compose.yml")
    assert files == SEVERAL_FILES
    spec = parse(SEVERAL, given=Given(files=files, values={"OURS": "given"}))
    found = {one.name: one for one in spec.services}
    db = found["db"]
    assert (db.image, db.argv) == ("db:two", ("run",))
    assert db.env == {
        "A": "1",
        "B": "2",
        "COST": "$5",
        "HOST": "it costs $1",
        "PLUS": "with",
        "LEFT": "$left",
    }
    assert [(m.volume, m.target) for m in db.mounts] == [("base-other", "/data"), ("v", "/v")]
    assert (found["side"].image, found["side"].env["OURS"]) == ("side:two", "{secret.OURS}")
    assert found["web"].env["TAG"] == "none"


def test_a_file_that_is_reached_by_two_ways_is_taken_once() -> None:
    files = {
        "a.yml": "include: [c.yml]\nservices: {a: {image: x}}",
        "b.yml": "include: [c.yml]\nservices: {b: {image: x}}",
        "c.yml": "services: {c: {image: x, environment: {C: '${C-}'}}}\nnetworks: {n: {internal: true}}",
    }
    spec = parse("include: [a.yml, b.yml, ./a.yml]", given=Given(files=files))
    assert sorted(one.name for one in spec.services) == ["a", "b", "c"]
    # With other values it is another one, which has to say the same.
    text = "include: [a.yml, {path: c.yml, env_file: c.env}]"
    found = check(text, given=Given(files={**files, "c.env": "C=1"}))
    assert any("services.c is in another file too, and not alike" in one.text for one in found.refused)


OVER = """
include: [{path: sub/a.yml, env_file: sub/a.env}]
services:
  db:
    entrypoint: [serve]
    command: [ours]
    env_file: ours.env
    environment: [B=ours]
    ports: ["5432:5432"]
    volumes: ["data:/data", "./init:/init:ro"]
    healthcheck: {test: [CMD, ours]}
  web: {image: web, depends_on: [db]}
volumes: {data: , more: {labels: {c: ours}}}
"""
OVER_FILES = {
    "sub/a.yml": """
include: [deep.yml]
services:
  db:
    image: "db:${TAG}"
    command: [theirs]
    environment: {A: "${TAG:+theirs}", B: theirs}
    ports: ["5432:5432", "9:9"]
    volumes: ["./data:/data", {type: tmpfs, target: /init}]
    healthcheck: {test: theirs, interval: 7s}
    depends_on: [cache]
volumes: {data: {labels: {a: theirs}}, more: {labels: {a: theirs}}}
""",
    "sub/a.env": "TAG=1\n",
    "sub/deep.yml": """
services:
  cache: {image: cache}
  db: {image: deep, hostname: deep, environment: {D: "${TAG}", A: deep}}
volumes: {data: {labels: {a: theirs}}}
""",
    "ours.env": "A=file\nE=file\n",
}


def test_what_a_file_says_goes_over_what_it_includes(tmp_path: Path) -> None:
    """As two files do that are merged, on every floor; an environment is of all of them."""
    for path, text in {"compose.yml": OVER, **OVER_FILES}.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    files = read_files(tmp_path / "compose.yml")
    assert files == OVER_FILES
    spec = parse(OVER, given=Given(files=files))
    found = {one.name: one for one in spec.services}
    assert found.keys() == {"db", "web", "cache"}
    db = found["db"]
    assert (db.image, db.entrypoint, db.argv) == ("db:1", ("serve",), ("ours",))
    assert db.env == {"A": "theirs", "B": "ours", "D": "1", "E": "file"}
    assert [one.container for one in db.ports] == [5432, 9]
    assert [(m.volume, m.target) for m in db.mounts] == [("data", "/data"), ("init", "/init")]
    assert db.options == {"hostname": '"deep"'}
    assert db.health is not None and (db.health.test, db.health.interval) == (("ours",), 7.0)


def test_only_who_includes_a_file_goes_over_it() -> None:
    """Whichever way it was reached first; two that stand beside each other have to say the same."""
    base = {"base.yml": "services: {c: {image: x, user: '1'}}", "plain.yml": "include: [base.yml]"}
    over = {**base, "over.yml": "include: [base.yml]\nservices: {c: {user: '2'}}"}
    for first in ("include: [plain.yml, over.yml]", "include: [over.yml, plain.yml]"):
        (service,) = parse(first, given=Given(files=over)).services
        assert (service.image, service.user) == ("x", "2")
    beside = {**over, "beside.yml": "include: [base.yml]\nservices: {c: {user: '3'}}"}
    (refused,) = check("include: [over.yml, beside.yml]", given=Given(files=beside)).refused
    assert refused.key == "include[1]" and "services.c is in another file too, and not alike" in refused.text


def test_what_values_are_written_out_to_is_bounded() -> None:
    many = "services: {b: {image: x, environment: {" + ", ".join(f"A{n}: $A" for n in range(50)) + "}}}"
    files = {"a.yml": many, "a.env": "A=" + "y" * 10_000}
    found = check("include: [{path: a.yml, env_file: a.env}]", given=Given(files=files))
    assert any("with the values of its `env_file` it is longer" in one.text for one in found.refused)
    deep = "include: [{path: a.yml, env_file: a.env}]\nservices: {a: {image: x}}"
    files = {"a.yml": "services: {b: {image: 'x:${A'}}", "a.env": "A=1"}
    assert any("is not closed" in one.text for one in check(deep, given=Given(files=files)).refused)


def extending(path: str, count: int = 60) -> str:
    """`{n}` in the path is the service's number."""
    each = (f"s{n}: {{extends: {{file: {path.replace('N', './' * n)}, service: b}}}}" for n in range(count))
    return f"services: {{{','.join(each)}}}"


@pytest.mark.parametrize("path", ["a.yml", "Na.yml", "x/../Na.yml"])
@pytest.mark.parametrize("text", ["services: {b: {image: x}}", "services: ["])
def test_a_file_is_read_once_however_often_it_is_named(
    monkeypatch: pytest.MonkeyPatch, path: str, text: str
) -> None:
    """Else a short manifest would stand for hours of reading, also of what cannot be read."""
    reads, real = list[str](), document.read

    def counted(given: str, problems: Problems) -> Table:
        reads.append(given)
        return real(given, problems)

    monkeypatch.setattr(including, "read", counted)
    found = check(extending(path), given=Given(files={"a.yml": text}))
    assert reads == [text]
    assert bool(found.refused) == (text == "services: [")


def test_other_files_are_bounded_together() -> None:
    half = "services: {b: {image: x}}\nx-much: " + "y" * (including.MAX_BYTES // 2)
    text = "include: [a.yml, c.yml]\nservices: {a: {image: x}}"
    (refused,) = check(text, given=Given(files={"a.yml": half, "c.yml": half})).refused
    assert refused.key == "include[1]" and "bytes together" in refused.text
    assert not check(text, given=Given(files={"a.yml": half, "c.yml": "services: {}"})).refused


def test_what_services_extend_is_bounded_when_it_is_written_out() -> None:
    """Else ten thousand words would stand for a hundred million volumes."""
    volumes = ", ".join(f"v{n}:/v{n}" for n in range(1000))
    many = MAX_NODES // 1000 + 5
    text = (
        f"services: {{b: {{image: x, volumes: [{volumes}]}}"
        + "".join(f", s{n}: {{extends: b}}" for n in range(many))
        + "}"
    )
    assert any("counting what it" in one.text for one in check(text).refused)
