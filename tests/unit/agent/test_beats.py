"""Signs of life: a dead device must not be kept alive by somebody else, be it the log server or another member's device."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fractal.agent.beats import AppBeat, Beat, Ear, MirrorBeat, Voice, beat_bytes, read_beat
from fractal.agent.notes import MemoryNotes
from fractal.api.canonical import decode, encode
from fractal.api.errors import InvalidInput
from fractal.core.model import Point
from fractal.crypto.keys import DeviceKeys
from fractal.testing.group import SeededEntropy

GROUP = "0" * 32
ATTIC, DEN = DeviceKeys.generate(SeededEntropy(1)), DeviceKeys.generate(SeededEntropy(2))
KEYS = {keys.id: keys.sign_public for keys in (ATTIC, DEN)}


def beat(keys: DeviceKeys = ATTIC, run: int = 1, number: int = 1) -> Beat:
    return Beat(
        device=keys.id,
        run=run,
        number=number,
        apps={"a" * 16: AppBeat(epoch=3, committed=Point(epoch=3, number=9), would_lose=1500)},
        nonce="n",
    )


def test_a_beat_is_read_back() -> None:
    heard = read_beat(beat_bytes(beat(), GROUP, ATTIC), GROUP, KEYS.get)
    assert (heard.device, heard.run, heard.number, heard.apps) == (ATTIC.id, 1, 1, beat().apps)


def test_what_is_read_is_all_that_was_said() -> None:
    # The simulator counts on it: it remembers what is said instead of reading it once more.
    point = Point(epoch=3, number=9)
    app = AppBeat(
        epoch=3,
        health="healthy",
        frozen=True,
        committed=point,
        would_lose=1500,
        spec="5" * 16,
        detail='what is "wrong", in ünïcode',
        mirrors={"b" * 16: MirrorBeat(behind=2, since=30, problem="away")},
    )
    full = replace(
        beat(), apps={"a" * 16: app}, warm={"a" * 16: point, "c" * 16: point}, capacity=512, wall_ms=1
    )
    for said in (full, beat(), replace(beat(), apps={}, nonce="")):
        assert read_beat(beat_bytes(said, GROUP, ATTIC), GROUP, KEYS.get) == said


def test_nothing_stands_beside_what_is_signed() -> None:
    value = decode(beat_bytes(beat(), GROUP, ATTIC))
    beside: list[dict[str, object]] = [{"a": 1}, {"beaten": {}}, {"c": "x"}, {"z": []}]
    for more in beside:
        with pytest.raises(InvalidInput):
            read_beat(encode({**value, **more}), GROUP, KEYS.get)


def test_another_device_of_the_group_cannot_speak_for_a_dead_one() -> None:
    for forged in (
        beat_bytes(beat(), GROUP, DEN),
        encode({"beat": decode(beat_bytes(beat(), GROUP, ATTIC))["beat"]}),
    ):
        with pytest.raises(InvalidInput):
            read_beat(forged, GROUP, KEYS.get)


def test_a_beat_means_nothing_when_altered_or_in_another_group() -> None:
    value = decode(beat_bytes(beat(), GROUP, ATTIC))
    for name, other in (("number", 2), ("run", 2), ("nonce", "mine"), ("heard", 1)):
        with pytest.raises(InvalidInput):
            read_beat(encode({**value, "beat": {**value["beat"], name: other}}), GROUP, KEYS.get)
    with pytest.raises(InvalidInput):
        read_beat(encode(value), "1" * 32, KEYS.get)


def test_strangers_and_noise_are_not_heard() -> None:
    stranger = DeviceKeys.generate(SeededEntropy(3))
    for data in (
        beat_bytes(beat(stranger), GROUP, stranger),
        b"",
        b"{}",
        b'{"beat":[]}',
        b'{"beat":{},"sig":1}',
    ):
        with pytest.raises(InvalidInput):
            read_beat(data, GROUP, KEYS.get)


def test_what_was_heard_is_no_news_however_it_is_played_again() -> None:
    ear = Ear()
    said = [beat(run=run, number=number) for run in (1, 2) for number in (1, 2, 3)]
    assert all(ear.news(one) for one in said)
    assert not any(ear.news(one) for one in said + said[::-1])
    assert ear.news(beat(run=2, number=9))
    assert not ear.news(beat(run=2, number=8))
    assert ear.news(beat(DEN)), "each device has numbers of its own"


def test_numbers_rise_over_restarts_of_the_agent() -> None:
    notes, ear = MemoryNotes(), Ear()
    for _ in range(3):
        voice = Voice(notes, GROUP)
        assert all(ear.news(beat(run=voice.run, number=voice.next())) for _ in range(3))
    assert Voice(notes, "1" * 32).run == 1
