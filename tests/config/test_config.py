"""A device's configuration: what it means, and all that can be wrong with it at once."""

from __future__ import annotations

import enum
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fractal.api.errors import ExitCode, InvalidInput, Misconfigured
from fractal.builtin.direct.config import DirectConfig
from fractal.builtin.directory_config import DirectoryConfig
from fractal.builtin.folder_config import FolderConfig
from fractal.builtin.memory_store import MemoryStoreConfig
from fractal.builtin.sqlite_config import SqliteConfig
from fractal.config import ConfigError, DeviceConfig, load, parse
from fractal.config.convert import convert
from fractal.config.lines import key_lines, line_of
from fractal.config.schema import sample, schema, shown
from fractal.config.stores import store_settings
from fractal.core.model import DeviceRole
from fractal.plugins import Plugins

PATH = Path("/etc/homeserver/config.toml")
MINIMAL = '[device]\nname = "Attic"\n'


def read(text: str) -> DeviceConfig:
    return parse(text.encode(), PATH)


def problems(text: str) -> list[str]:
    """`LINE: key: message` of each problem."""
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert caught.value.exit_code is ExitCode.CONFIG
    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"{PATH}:") for line in lines)
    return [line.removeprefix(f"{PATH}:") for line in lines]


def test_a_name_is_all_that_is_needed() -> None:
    config = read(MINIMAL)
    assert config.device.state_dir == Path("/var/lib/homeserver")
    assert config.device.runtime_dir == Path("/var/lib/homeserver/run")
    assert config.device.roles == {DeviceRole.HOST}
    chosen = (config.runtime, config.snapshot, config.transport, config.coordination)
    assert [c.backend for c in chosen] == ["process", "copy", "direct", "sqlite"]
    assert config.transport.settings == DirectConfig()
    assert [(c.backend, c.settings) for c in config.catalogs] == [("folder", FolderConfig())]


def test_everything_that_is_said_is_meant() -> None:
    config = read(
        """
        schema = 1
        [device]
        name = "Küche 2"
        state_dir = "state"
        runtime_dir = "/run/homeserver"
        roles = ["gateway", "host"]
        [transport]
        backend = "direct"
        direct = { https_port = 443, hold = 3 }
        [coordination.sqlite]
        path = "/srv/log"
        [[catalog]]
        [[catalog]]
        name = "ours"
        path = "apps"
        [store."Home NAS"]
        path = "/mnt/nas"
        [log]
        level = "DEBUG"
        [plugins]
        enabled = ["notify"]
        """
    )
    assert config.device.name == "Küche 2"
    assert config.device.state_dir == PATH.parent / "state"
    assert config.device.runtime_dir == Path("/run/homeserver")
    assert config.device.roles == {DeviceRole.GATEWAY, DeviceRole.HOST}
    assert config.transport.settings == DirectConfig(https_port=443, hold=3.0)
    assert config.coordination.settings == SqliteConfig(path="/srv/log")
    assert [(c.name, c.settings.path) for c in config.catalogs] == [
        ("", None),
        ("ours", PATH.parent / "apps"),
    ]
    assert config.log.level == "DEBUG"
    assert config.plugins.enabled == ("notify",)


def test_everything_wrong_is_told_at_once_with_its_line() -> None:
    text = """schema = 1
[device]
nmae = "Attic"
roles = [
  "host",
  "hots",
]
[runtime]
backend = "dokcer"
[snapshot.copy]
path = 3
[transport.direct]
https_port = "443"
lan = 1
hold = nan
[coordination]
backend = "sqlite"
pth = "x"
[coordination.memory]
[[catalog]]
backend = 4
[[catalog]]
path = ""
[log]
level = "LOUD"
[stroe]
"""
    found = problems(text)
    places = [2, 3, 6, 9, 11, 13, 14, 15, 18, 19, 20, 23, 25, 26]
    assert [int(line.partition(":")[0]) for line in found] == places
    expected = [
        "device.name: missing",
        "device.nmae: unknown key; did you mean 'name'?",
        "device.roles[1]: 'hots' is not one of host, store, gateway",
        "runtime.backend: no runtime 'dokcer' is installed",
        "snapshot.copy.path: must be a path in quotes, not 3",
        "transport.direct.https_port: must be a whole number, not '443'",
        "transport.direct.lan: must be true or false, not 1",
        "transport.direct.hold: must be finite",
        "coordination.pth: unknown key",
        "coordination.memory: not used: the coordination backend is 'sqlite'",
        "catalog[0]: `backend` and `name` must be strings",
        "catalog[1].path: must not be empty",
        "log.level: 'LOUD' is not one of DEBUG",
        "stroe: unknown key; did you mean 'store'?",
    ]
    for line, part in zip(found, expected, strict=True):
        assert part in line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"[device]\nname = \n", "2: not TOML: Invalid value"),
        (b'[device]\nname = "x"\nname = "y"\n', "3: not TOML: Cannot overwrite a value"),
        (b'[device]\nname = "\xff"\n', "2: not UTF-8"),
        (b"x = " + b"[" * 20_000, "1: nested too deeply"),
        (b"[device]\nname = 1" + b"0" * 5000, ": not TOML"),
        (b"#" * (1 << 20) + b"#", "1: larger than"),
        (b"device = 3\n", "1: device: must be a table"),
        (b'catalog = "x"\n', "1: catalog: must be written [[catalog]]"),
        (b"schema = 2\n", "1: schema: must be 1"),
        (b"schema = true\n", "1: schema: must be 1"),
        (b'[device]\nname = "  "\n', "2: device.name: must not be empty"),
        (b'[device]\nname = "x"\nstate_dir = "a\\u0000b"\n', "3: device.state_dir: must not contain a NUL"),
        (
            b'[device]\nname = "x"\nstate_dir = "~nobody-here/x"\n',
            "3: device.state_dir: '~nobody-here/x': no such home",
        ),
        (
            b"[transport.direct]\nhttps_port = 99999999999999999999999\n",
            "2: transport.direct.https_port: too large",
        ),
        (b'"\\u001b[2J" = 1\n', '1: "\N{REPLACEMENT CHARACTER}[2J": unknown key'),
    ],
)
def test_one_thing_wrong(text: bytes, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, PATH)
    assert expected in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="homeserver config init"):
        load(tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match="is not a file"):
        load(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="is not a file"):
        load(tmp_path / "pipe")


# --- lines ---------------------------------------------------------------------------------------------------------


def test_lines_of_every_way_to_write_a_key() -> None:
    lines = key_lines(
        '# [a]\na."b.c" = 1\nd = """\n[e]\nf = 1\\"""""\n\'g\' = [ # [h]\n  1,\n\n  { i = 2, j.k = 3 },\n]\n'
        "[l . m]\r\nn = '''\n\n'''\n[[o]]\np = 1\n[[o]]\n[o.q]\nr = 1979-05-27 07:32:00\n"
    )
    expected: dict[tuple[str | int, ...], int] = {
        ("a", "b.c"): 2,
        ("d",): 3,
        ("g",): 6,
        ("g", 0): 7,
        ("g", 1): 9,
        ("g", 1, "i"): 9,
        ("g", 1, "j", "k"): 9,
        ("l", "m"): 11,
        ("l", "m", "n"): 12,
        ("o", 0, "p"): 16,
        ("o", 1): 17,
        ("o", 1, "q"): 18,
        ("o", 1, "q", "r"): 19,
    }
    assert {key: lines.get(key) for key in expected} == expected
    assert ("e",) not in lines
    assert line_of(("o", 1, "q", "absent"), lines) == 18
    assert line_of(("absent",), lines) == 1


# --- conversion ----------------------------------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = "red"
    ONE = 1


@dataclass(frozen=True)
class Inner:
    depth: int = field(metadata={"help": "How deep.", "minimum": 1})


@dataclass(frozen=True)
class Everything:
    text: str = ""
    number: int = 0
    ratio: float = 0.5
    flag: bool = False
    path: Path | None = None
    colour: Colour = Colour.RED
    many: tuple[int, ...] = ()
    some: frozenset[str] = frozenset()
    table: Mapping[str, float] = field(default_factory=dict)
    inner: Inner | None = None
    secret: str = field(default="", repr=False)
    unsettable: object | None = None


@dataclass(frozen=True)
class Careful:
    low: int = 0
    high: int = 1

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise Misconfigured("high", "less than `low`")


def test_every_type_converts() -> None:
    values: dict[str, object] = {
        "text": "x",
        "number": 3,
        "ratio": 2,
        "flag": True,
        "path": "p",
        "colour": 1,
        "many": [1, 2],
        "some": ["a"],
        "table": {"a": 1},
        "inner": {"depth": 4},
        "secret": "s",
    }
    converted = convert(Everything, values, base=Path("/base"))
    assert converted.problems == ()
    assert converted.value == Everything(
        "x", 3, 2.0, True, Path("/base/p"), Colour.ONE, (1, 2), frozenset({"a"}), {"a": 1.0}, Inner(4), "s"
    )


@pytest.mark.parametrize(
    ("values", "where"),
    [
        ({"text": 1}, "text"),
        ({"number": True}, "number"),
        ({"number": 1.0}, "number"),
        ({"ratio": "1"}, "ratio"),
        ({"ratio": float("inf")}, "ratio"),
        ({"flag": 0}, "flag"),
        ({"colour": True}, "colour"),
        ({"many": 1}, "many"),
        ({"many": "12"}, "many"),
        ({"many": [1, "2"]}, "many.1"),
        ({"table": []}, "table"),
        ({"table": {"a": "b"}}, "table.a"),
        ({"inner": 3}, "inner"),
        ({"inner": {}}, "inner.depth"),
        ({"inner": {"depth": 0}}, "inner.depth"),
        ({"unsettable": 1}, "unsettable"),
        ({"absent": 1}, "absent"),
    ],
)
def test_what_does_not_fit_is_named(values: dict[str, object], where: str) -> None:
    converted = convert(Everything, values)
    assert converted.value is None
    assert [".".join(map(str, p.key)) for p in converted.problems] == [where]


def test_an_authors_own_check_names_its_key() -> None:
    (problem,) = convert(Careful, {"low": 2}, where=("runtime", "careful")).problems
    assert (problem.key, problem.message) == (("runtime", "careful", "high"), "less than `low`")


def test_fields_that_only_python_can_set_are_no_settings() -> None:
    assert convert(MemoryStoreConfig, {"staleness": 1.5}).value.staleness == 1.5
    assert [p.key for p in convert(MemoryStoreConfig, {"objects": {}}).problems] == [("objects",)]
    record = Plugins.discover().store("memory")
    assert [setting["name"] for setting in shown(record)] == ["staleness"]


# --- stores --------------------------------------------------------------------------------------------------------


def test_a_stores_strings_from_the_log_are_read_as_its_types() -> None:
    settings = store_settings(None, "NAS", DirectoryConfig, {"path": "/mnt/nas", "staleness": "30"})
    assert settings == DirectoryConfig(path=Path("/mnt/nas"), staleness=30.0)


def test_this_devices_own_settings_win_and_are_blamed_by_file() -> None:
    config = read(MINIMAL + '[store.NAS]\npath = "here"\n[store.bad]\npath = 3\n')
    settings = store_settings(config, "NAS", DirectoryConfig, {"path": "/mnt/nas", "staleness": "30"})
    assert settings == DirectoryConfig(path=PATH.parent / "here", staleness=30.0)
    with pytest.raises(InvalidInput) as caught:
        store_settings(config, "bad", DirectoryConfig, {"staleness": "soon", "colour": "red"})
    text = str(caught.value)
    assert f"{PATH}: store.bad.path: must be a path" in text
    assert "; store.bad.colour: unknown key" in text
    assert "store.bad.staleness: must be a number, not 'soon'" in text


def test_a_path_out_of_the_log_does_not_depend_on_this_devices_file() -> None:
    config = read(MINIMAL)
    settings = store_settings(config, "NAS", DirectoryConfig, {"path": "/mnt/nas"})
    assert settings.path == Path("/mnt/nas")


# --- made from the dataclasses -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Attic", 'He said "hi" \\ \x7f', "Küche\n"])
def test_the_first_configuration_is_sound_and_says_what_is_meant(name: str) -> None:
    config = read(sample(name, Path("/srv/state"), Plugins.discover()))
    assert config.device.name == name
    assert config.device.state_dir == Path("/srv/state")
    assert config.transport.settings == DirectConfig()


def test_the_first_configurations_comments_are_sound_settings() -> None:
    """Uncommented, every line that shows a default is accepted and changes nothing."""
    plugins = Plugins.discover()
    text = sample("Attic", Path("/srv/state"), plugins)
    shown_lines = [
        line.removeprefix("# ") if " = " in line and "..." not in line else line for line in text.splitlines()
    ]
    assert read("\n".join(shown_lines)) == read(text)


def test_the_schema_knows_every_table_and_setting() -> None:
    plugins = Plugins.discover()
    made = schema(plugins)
    tables = made["properties"]
    assert tables["device"]["required"] == ["name"]
    assert tables["runtime"]["properties"]["backend"] == {"enum": ["process"], "default": "process"}
    direct = tables["transport"]["properties"]["direct"]
    assert direct["properties"]["https_port"]["type"] == "integer"
    assert not direct["additionalProperties"]
    assert tables["log"]["properties"]["level"]["enum"] == ["DEBUG", "INFO", "WARNING", "ERROR"]


def every_setting() -> list[Any]:
    plugins = Plugins.discover()
    kinds = ("runtime", "snapshot", "store", "transport", "authority", "coordination", "catalog")
    return [
        setting for kind in kinds for n in plugins.names(kind) for setting in shown(plugins.backend(kind, n))
    ]


def test_every_setting_of_every_builtin_is_explained_in_a_sentence() -> None:
    found = every_setting()
    assert len(found) > 20
    assert [s["name"] for s in found if not s["help"].rstrip().endswith(".")] == []
