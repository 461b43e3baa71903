"""What a create says when an answer was lost, or the server puts it off: a server that is real, and answers that are not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from fractal_s3.client import Client
from fractal_s3.faults import Refused, Unanswered
from fractal_s3.store import S3Store
from fractal_s3.testing import CephServer, S3Server

from fractal.api.errors import Ambiguous, BackendError, Conflict

Opener = Callable[..., AbstractAsyncContextManager[S3Store]]


def answers(monkeypatch: pytest.MonkeyPatch, *errors: BackendError) -> None:
    """These come instead of the next answers to a create; whatever is asked besides is answered by the server."""
    left: Iterator[BackendError] = iter(errors)
    once = Client.once

    async def scripted(client: Client, operation: str, what: str, **parameters: Any) -> Mapping[str, Any]:
        if operation == "put_object" and (error := next(left, None)) is not None:
            raise error
        return await once(client, operation, what, **parameters)

    monkeypatch.setattr(Client, "once", scripted)


@pytest.fixture
def busy() -> list[BackendError]:
    """Another write of the name is under way, as often as it is asked."""
    return [Refused("another write is under way", busy=True) for _ in range(3)]


async def test_a_name_that_others_keep_trying_to_write_is_no_conflict(
    ceph: CephServer,
    opener: Opener,
    bucket: Callable[[S3Server], str],
    monkeypatch: pytest.MonkeyPatch,
    busy: list[BackendError],
) -> None:
    async with opener(ceph, bucket(ceph)) as store:
        answers(monkeypatch, *busy)
        with pytest.raises(BackendError, match="under way") as caught:
            await store.put_new("a/1", b"one")
        assert not isinstance(caught.value, Conflict | Ambiguous) and caught.value.retryable
        await store.put_new("a/1", b"one")
        with pytest.raises(Conflict):
            await store.put_new("a/1", b"two")


async def test_what_fails_after_an_answer_was_lost_leaves_it_open(
    ceph: CephServer, opener: Opener, bucket: Callable[[S3Server], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opener(ceph, bucket(ceph)) as store:
        answers(monkeypatch, Unanswered("no answer", sent=True), BackendError("forbidden (403)"))
        with pytest.raises(Ambiguous, match=r"forbidden .* may have been created"):
            await store.put_new("a/1", b"one")


async def test_what_fails_before_anything_was_sent_does_not(
    ceph: CephServer, opener: Opener, bucket: Callable[[S3Server], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opener(ceph, bucket(ceph)) as store:
        answers(monkeypatch, Unanswered("no connection", sent=False), BackendError("forbidden (403)"))
        with pytest.raises(BackendError, match="forbidden") as caught:
            await store.put_new("a/1", b"one")
        assert not isinstance(caught.value, Ambiguous)
