"""Answers that no homeserver gives unless it means harm: they are judged or refused, and never break what reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fractal_matrix.listening import Listener
from fractal_matrix.wire import LONGEST_WAIT, Busy, _judged
from hypothesis import given
from hypothesis import strategies as st

from fractal.api.errors import BackendError
from fractal.testing.context import real_context

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from((200, 401, 403, 429, 500)), st.text(max_size=12), VALUES, VALUES)
def test_any_answer_is_judged(status: int, after: str, wait: Any, code: Any) -> None:
    """By status and body, whatever stands where."""
    raw = json.dumps({"retry_after_ms": wait, "errcode": code, "error": code}).encode()
    try:
        _judged("asking", status, {"Retry-After": after}, raw, write=False)
    except BackendError as error:
        assert not isinstance(error, Busy) or 0 <= error.wait <= LONGEST_WAIT


@pytest.mark.parametrize(
    ("said", "wait"),
    [
        ("250", 0.25),
        ("1" + 400 * "0", LONGEST_WAIT),
        ("-1" + 400 * "0", 0),
        ("1e999", LONGEST_WAIT),
        ("NaN", 5),
        ("[]", 5),
    ],
)
def test_the_wait_that_a_busy_homeserver_asks_for_is_bounded(said: str, wait: float) -> None:
    with pytest.raises(Busy) as caught:
        _judged("asking", 429, {}, b'{"retry_after_ms": %s}' % said.encode(), write=True)
    assert caught.value.wait == wait


@pytest.mark.parametrize("events", [[{"type": []}], [{"type": {}}, 7], [[]], {"type": "none"}])
async def test_a_poll_with_strange_events_wakes_those_who_wait(tmp_path: Path, events: object) -> None:
    """They ask what is new, and are told by that answer what is wrong."""

    async def call(*_args: object, **_more: object) -> dict[str, Any]:
        raise BackendError("not asked in this test", retryable=True)

    async with real_context(tmp_path) as context:
        listener = Listener(context, call)
        try:
            listener.watch("!a", lambda _: None)
            mark = listener.mark("!a")
            listener._take({"next_batch": "s1", "rooms": {"join": {"!a": {"timeline": {"events": events}}}}})
            assert listener.mark("!a") != mark
        finally:
            await listener.close()
