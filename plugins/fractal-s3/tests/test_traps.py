"""What goes wrong with a server at the other end of a line."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path
from typing import Any

import pytest
from fractal_s3.client import ATTEMPTS, Client, connect
from fractal_s3.config import S3Config
from fractal_s3.credentials import Credentials
from fractal_s3.faults import Refused
from fractal_s3.store import S3Store, open_s3
from fractal_s3.testing import ACCESS_KEY, DOMAIN, SECRET_KEY, CephServer, S3Server
from fractal_s3.testing_line import Fault, Proxy, proxy
from fractal_s3.trial import Trial

from fractal.api.errors import Ambiguous, BackendError, Conflict, Misconfigured, NotFound
from fractal.testing.context import real_context
from fractal.testing.store import keys, read

Opener = Callable[..., AbstractAsyncContextManager[S3Store]]
Bucket = Callable[[S3Server], str]
MIB = 1 << 20
PART = 5 * MIB


@pytest.fixture
async def line(ceph: CephServer) -> AsyncIterator[Proxy]:
    """A line to Ceph that can fail."""
    async with proxy(ceph.port) as made:
        yield made


def through(line: Proxy, **more: Any) -> dict[str, Any]:
    """Settings of a store behind it, which loses its patience soon."""
    return {"endpoint": f"http://127.0.0.1:{line.port}", "timeout": 3.0, "connect_timeout": 3.0} | more


async def stream(data: bytes) -> AsyncIterator[bytes]:
    """In pieces that fit no part."""
    for at in range(0, len(data), 999_983):
        yield data[at : at + 999_983]


@pytest.mark.parametrize("fault", [Fault.CUT_ANSWER, Fault.LOSE_ANSWER, Fault.CUT_REQUEST])
async def test_a_create_whose_answer_was_lost_is_recognised(
    ceph: CephServer, line: Proxy, opener: Opener, bucket: Bucket, fault: Fault
) -> None:
    async with opener(ceph, bucket(ceph), **through(line)) as store:
        line.arrange(fault, "PUT", "/objects/")
        await store.put_new("a/1", b"mine")
        assert line.times == 0 and await read(store, "a/1") == b"mine"
        with pytest.raises(Conflict):
            await store.put_new("a/1", b"mine")


async def test_a_create_whose_answer_was_lost_does_not_claim_what_another_wrote(
    ceph: CephServer, line: Proxy, opener: Opener, bucket: Bucket
) -> None:
    place = bucket(ceph)
    async with opener(ceph, place, **through(line)) as store, opener(ceph, place) as other:
        line.arrange(Fault.CUT_REQUEST, "PUT", "/objects/")
        put = asyncio.create_task(store.put_new("a/1", b"mine"))
        async with asyncio.timeout(30):
            while line.times:
                await asyncio.sleep(0.01)
        await other.put_new("a/1", b"theirs")
        with pytest.raises(Conflict):
            await put
        assert await read(store, "a/1") == b"theirs"


async def test_a_line_that_loses_every_answer_leaves_it_open(
    ceph: CephServer, line: Proxy, opener: Opener, bucket: Bucket
) -> None:
    async with opener(ceph, bucket(ceph), **through(line)) as store:
        line.arrange(Fault.CUT_ANSWER, "", "/objects/", times=100)
        with pytest.raises(Ambiguous, match="a/1"):
            await store.put_new("a/1", b"mine")
        assert 100 - line.times <= 2 * ATTEMPTS  # nothing is repeated without a bound
        line.times = 0
        assert await read(store, "a/1") == b"mine"


async def test_what_may_be_repeated_is(ceph: CephServer, line: Proxy, opener: Opener, bucket: Bucket) -> None:
    data = os.urandom(3 * MIB + 17)
    async with opener(ceph, bucket(ceph), **through(line)) as store:
        await store.put_new("a/1", data)
        line.arrange(Fault.BREAK_BODY, "GET", "/objects/", times=2)
        assert await read(store, "a/1", offset=5) == data[5:]
        assert line.times == 0
        for method, call in (
            ("HEAD", store.head("a/1")),
            ("GET", keys(store)),
            ("DELETE", store.delete("a/1")),
        ):
            line.arrange(Fault.CUT_ANSWER, method, times=2)
            await call
            assert line.times == 0
        assert await keys(store) == []


async def test_a_server_that_is_silent_fails_calls_in_time(
    ceph: CephServer, line: Proxy, opener: Opener, bucket: Bucket
) -> None:
    async with opener(ceph, bucket(ceph), **through(line, timeout=1.0)) as store:
        await store.put_new("a/1", b"one")
        line.arrange(Fault.LOSE_ANSWER, "", times=1000)
        for call in (
            store.put_new("a/2", b"two"),
            store.head("a/1"),
            read(store, "a/1"),
            keys(store),
            store.delete("a/1"),
        ):
            async with asyncio.timeout(60):  # the assertion is that it ends by itself, with the right error
                with pytest.raises(BackendError) as caught:
                    await call
            assert caught.value.retryable
        line.arrange(Fault.SLOW, "", times=1000)
        # All of it was done, only not heard of.
        assert await keys(store) == ["a/2"] and await read(store, "a/2") == b"two"


async def test_a_server_that_is_gone_was_told_nothing(
    ceph: CephServer, opener: Opener, bucket: Bucket
) -> None:
    async with proxy(ceph.port) as line:
        context = opener(ceph, bucket(ceph), **through(line))
        store = await context.__aenter__()
    try:
        with pytest.raises(BackendError, match="cannot be reached") as caught:
            await store.put_new("a/1", b"one")
        assert caught.value.retryable and not isinstance(caught.value, Ambiguous)
    finally:
        await context.__aexit__(None, None, None)


@pytest.mark.parametrize("parts", [False, True])
async def test_large_objects(
    ceph: CephServer, line: Proxy, opener: Opener, bucket: Bucket, tmp_path: Path, parts: bool
) -> None:
    """In one request from a spool, as Ceph wants it, and in parts, as others do; parts and answers get lost."""
    data = os.urandom(3 * PART + 1)
    place = bucket(ceph)
    async with opener(ceph, place, **through(line, part_mib=5, timeout=10.0)) as store:
        assert store.fencing and not store._parts
        store._parts = parts
        line.arrange(Fault.CUT_ANSWER, "PUT", "partNumber=2" if parts else "/objects/")
        await store.put_new("a/1", stream(data))
        assert line.times == 0 and await read(store, "a/1") == data
        if parts:
            line.arrange(Fault.CUT_ANSWER, "POST", "uploadId=")
            await store.put_new("a/2", data)
            assert line.times == 0 and await read(store, "a/2") == data
        with pytest.raises(Conflict):
            await store.put_new("a/1", stream(data))
        assert (await keys(store))[0] == "a/1"
        begun = asyncio.Event()
        put = asyncio.create_task(store.put_new("a/3", _endless(begun)))
        await begun.wait()
        put.cancel()
        await asyncio.wait([put], timeout=30)
    assert "Uploads" not in ceph.client().list_multipart_uploads(Bucket=place)
    assert sorted(p.name for p in (tmp_path / "device-0" / "state").iterdir()) == []


async def _endless(begun: asyncio.Event) -> AsyncIterator[bytes]:
    for _ in range(12):
        yield bytes(MIB)
    begun.set()
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("guarded", "weakness", "parts"),
    [("put_object", "at the same time", False), ("complete_multipart_upload", "", True)],
)
async def test_what_a_server_checks_where_is_found_out(
    ceph: CephServer,
    bucket: Bucket,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    guarded: str,
    weakness: str,
    parts: bool,
) -> None:
    """A server that looks for the object only when a write begins refuses every second write of a row, and yet lets two of
    a time win; one that looks before it puts parts together, as Ceph 16 does not, may be sent parts."""
    place = bucket(ceph)
    once = Client.once

    async def look_first(client: Client, operation: str, what: str, **parameters: Any) -> Any:
        if operation == guarded and parameters.pop("IfNoneMatch", None):
            with suppress(NotFound):
                await once(client, "head_object", what, Key=parameters["Key"])
                raise Refused(f"{what}: exists already")
            await asyncio.sleep(0.3)  # between look and write, so that two of a time both look first
        return await once(client, operation, what, **parameters)

    monkeypatch.setattr(Client, "once", look_first)
    config = ceph.settings(tmp_path, bucket=place)
    async with real_context(tmp_path) as context:
        client = Client(context, config, connect(config, Credentials(ACCESS_KEY, SECRET_KEY)))
        try:
            found = await Trial(client, "tmp/", "x").run()
        finally:
            await client.close()
    assert (weakness in found[0], bool(found[0]), found[1]) == (True, bool(weakness), parts)
    listed = ceph.client()
    assert "Contents" not in listed.list_objects_v2(Bucket=place)
    assert "Uploads" not in listed.list_multipart_uploads(Bucket=place)


async def test_of_devices_that_race_one_wins(ceph: CephServer, opener: Opener, bucket: Bucket) -> None:
    place = bucket(ceph)
    async with opener(ceph, place) as one, opener(ceph, place) as two, opener(ceph, place) as three:
        stores = {b"one": one, b"two": two, b"three": three}
        for number in range(10):
            puts = [store.put_new(f"epoch/{number}", mine) for mine, store in stores.items()]
            results = await asyncio.gather(*puts, return_exceptions=True)
            winners = [mine for mine, result in zip(stores, results, strict=True) if result is None]
            assert [type(r) for r in results if r is not None] == [Conflict, Conflict]
            assert [await read(s, f"epoch/{number}") for s in stores.values()] == winners * 3


async def test_a_listing_of_many_pages(ceph: CephServer, opener: Opener, bucket: Bucket) -> None:
    place = bucket(ceph)
    async with opener(ceph, place) as store:
        names = [f"a/{number:04}" for number in range(1050)]
        for at in range(0, len(names), 50):
            await asyncio.gather(*(store.put_new(name, b"") for name in names[at : at + 50]))
        assert await keys(store) == names
        assert await keys(store, "a/10") == names[1000:]


async def test_virtual_hosts(
    ceph: CephServer, line: Proxy, opener: Opener, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve = socket.getaddrinfo

    def at_home(host: Any, *rest: Any, **more: Any) -> Any:
        return resolve("127.0.0.1" if str(host).endswith(f".{DOMAIN}") else host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", at_home)
    place = bucket(ceph)
    settings = through(line, endpoint=f"http://{DOMAIN}:{line.port}", virtual_host=True)
    async with opener(ceph, place, **settings) as store:
        await store.put_new("a/1", b"one")
        assert await keys(store) == ["a/1"]
    assert all(seen.endswith(f" {place}.{DOMAIN}:{line.port}") for seen in line.seen)
    assert not any(f"/{place}" in seen.split()[1] for seen in line.seen)


async def test_only_a_server_with_a_certificate_of_the_named_authority_is_told_anything(
    ceph: CephServer, opener: Opener, bucket: Bucket, tmp_path: Path
) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    named = [
        "-keyout",
        str(key),
        "-out",
        str(cert),
        "-subj",
        "/CN=store",
        "-addext",
        "subjectAltName=IP:127.0.0.1",
    ]
    subprocess.run([*made, *named], check=True, capture_output=True, timeout=60)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(cert, key)
    place = bucket(ceph)
    async with proxy(ceph.port, tls=tls) as line:
        settings = through(line, endpoint=f"https://127.0.0.1:{line.port}", timeout=10.0)
        async with opener(ceph, place, ca_file=cert, **settings) as store:
            assert store.fencing
            await store.put_new("a/1", bytes(MIB))
            assert len(await read(store, "a/1")) == MIB
        told = len(line.seen)
        with pytest.raises(Misconfigured, match="certificate") as caught:
            async with opener(ceph, place, **settings):
                pass
        assert (caught.value.key, len(line.seen)) == ("ca_file", told)


async def test_credentials_come_from_a_file_of_ones_own_or_the_environment_and_show_nowhere(
    ceph: CephServer,
    bucket: Bucket,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = ceph.settings(tmp_path, bucket=bucket(ceph))
    assert config.credentials is not None
    shown = repr(config)
    with caplog.at_level(logging.DEBUG):
        async with real_context(tmp_path) as context:
            async with open_s3(context, config) as store:
                await store.put_new("a/1", b"one")
            config.credentials.chmod(0o640)
            junk = tmp_path / "junk"
            junk.write_text(f"{SECRET_KEY}\n")
            junk.chmod(0o600)
            for wrong in (config.credentials, junk, tmp_path / "absent", tmp_path):
                with pytest.raises(Misconfigured) as caught:
                    async with open_s3(context, _with(config, credentials=wrong)):
                        pass
                shown += str(caught.value)
                assert (caught.value.key, str(wrong) in str(caught.value)) == ("credentials", True)
            for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
                monkeypatch.delenv(name, raising=False)
            with pytest.raises(Misconfigured, match="AWS_ACCESS_KEY_ID"):
                async with open_s3(context, _with(config, credentials=None)):
                    pass
            monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
            monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
            async with open_s3(context, _with(config, credentials=None)) as store:
                assert await keys(store) == ["a/1"]
            monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-but-still-nobodys-business")
            with pytest.raises(BackendError, match="credentials") as refused:
                async with open_s3(context, _with(config, credentials=None)):
                    pass
    shown += str(refused.value) + caplog.text
    assert SECRET_KEY not in shown and "nobodys-business" not in shown


def _with(config: S3Config, **changed: Any) -> S3Config:
    known = {"bucket": config.bucket, "endpoint": config.endpoint, "credentials": config.credentials}
    return S3Config(**known | changed)


async def test_a_bucket_that_is_not_there_or_not_ours(
    ceph: CephServer, opener: Opener, bucket: Bucket
) -> None:
    with pytest.raises(Misconfigured) as caught:
        async with opener(ceph, "nobodys-bucket"):
            pass
    assert caught.value.key == "bucket"
    place = bucket(ceph)
    ceph.client().put_object(Bucket=place, Key="holiday.jpg", Body=b"")
    with pytest.raises(Misconfigured, match=r"holiday\.jpg"):
        async with opener(ceph, place):
            pass
    async with opener(ceph, place, prefix="home/") as store:
        await store.put_new("a/1", b"one")
    ceph.client().put_object(Bucket=place, Key="home/store", Body=b"fractal directory store 9\n")
    with pytest.raises(Misconfigured, match="upgrade"):
        async with opener(ceph, place, prefix="home/"):
            pass


async def test_names_that_no_key_has_are_ignored(ceph: CephServer, opener: Opener, bucket: Bucket) -> None:
    place = bucket(ceph)
    async with opener(ceph, place) as store:
        await store.put_new("a/1", b"one")
        for name in ("a/2", "a/B=", "a/+3=", "a//4=", "a/../5=", "a/ö="):
            ceph.client().put_object(Bucket=place, Key=f"objects/{name}", Body=b"")
        assert await keys(store) == ["a/1"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("bucket", "a/b"),
        ("bucket", ""),
        ("endpoint", "ftp://x"),
        ("endpoint", "https://user:secret@x"),
        ("endpoint", "https://x/y"),
        ("endpoint", "https://x:99999"),
        ("prefix", "a"),
        ("prefix", "../"),
        ("prefix", "/"),
        ("region", ""),
        ("part_mib", 1),
        ("timeout", 0.0),
        ("staleness", float("nan")),
    ],
)
def test_settings_that_cannot_work_are_named(key: str, value: object) -> None:
    with pytest.raises(Misconfigured) as caught:
        S3Config(**({"bucket": "attic"} | {key: value}))  # type: ignore[arg-type]
    assert caught.value.key == key
    assert "secret" not in str(caught.value)
