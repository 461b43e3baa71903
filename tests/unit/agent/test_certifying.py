"""When a certificate is asked for again, and how long after failures: authorities count them."""

from __future__ import annotations

from dataclasses import replace

from fractal.agent.jobs.certifying import PAUSES, SETTLE, Certifying
from fractal.api.certificates import LIFETIME_DAYS, make_certificate
from fractal.core.model import App, Release
from fractal.shell.entropy import SystemEntropy

APP = App(id="a" * 16, name="wiki", manifest="", spec={}, store="s", owner_member="m", epoch=3, serving=3)
DAY_MS = 24 * 3600 * 1000


def test_failures_wait_longer_and_a_success_ends_that() -> None:
    known, now = Certifying(), 1000.0
    for pause in (*PAUSES, PAUSES[-1]):
        assert not known.waits("x", now)
        known.failed("x", "no", now)
        assert known.waits("x", now + pause - 1) and not known.waits("x", now + pause)
        now += pause
    assert known.trouble == {"x": "no"} and not known.waits("y", now)
    known.succeeded("x")
    assert known.trouble == {}
    known.failed("x", "again", now)
    assert not known.waits("x", now + PAUSES[0])


def test_a_public_authority_sees_few_failures_in_its_first_hour() -> None:
    known, now, tries = Certifying(), 0.0, 0
    while now < 3600:
        if not known.waits("x", now):
            tries += 1
            known.failed("x", "no", now)
        now += 1
    assert tries < 5  # Let's Encrypt allows five failed validations of a name an hour


def test_an_app_counts_as_served_from_when_this_epoch_was_seen_to_be() -> None:
    known = Certifying()
    assert known.served_for(replace(APP, serving=2), 10.0) < 0
    assert known.served_for(APP, 20.0) == 0.0
    assert known.served_for(APP, 20.0 + SETTLE) == SETTLE
    assert known.served_for(replace(APP, release=Release(epoch=3, clean=True)), 40.0) < 0
    assert known.served_for(APP, 50.0) == 0.0
    assert known.served_for(replace(APP, epoch=4, serving=4), 60.0) == 0.0


def test_it_is_renewed_when_two_thirds_of_its_life_are_over() -> None:
    chain = make_certificate("wiki.example", SystemEntropy(), 1_700_000_000_000).chain.decode()
    begin = 1_700_000_000_000 - DAY_MS
    assert abs(Certifying().renewal_ms(chain) - (begin + LIFETIME_DAYS * DAY_MS * 2 // 3)) < 2000
    assert Certifying().renewal_ms("rubbish") == 0


def test_what_fails_between_two_tries_makes_nobody_wait_longer() -> None:
    known, now = Certifying(), 1000.0
    for second in range(14):  # the app's secrets cannot be read at any look
        known.failed("x", "no key yet", now + second)
    assert known.waits("x", now + PAUSES[0] - 1) and not known.waits("x", now + PAUSES[0])
    assert known.trouble == {"x": "no key yet"}
