"""A group whose archives are in a bucket: of a server that fences, and of one that does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from fractal_s3.testing import ACCESS_KEY, SECRET_KEY, CephServer, RcloneServer, S3Server

from tests.stack.bed import GROUP, Bed, Device, until

Serve = Callable[[type[S3Server]], S3Server]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts a server with a bucket `attic`."""
    with ExitStack() as started:

        def of(kind: type[S3Server]) -> S3Server:
            if missing := kind.missing():
                pytest.skip(missing)
            server = started.enter_context(kind(tmp_path / "server"))
            server.make_bucket("attic")
            return server

        yield of


def group(bed: Bed, server: S3Server) -> tuple[Device, Device, str]:
    """Two devices, and what adding the store said."""
    credentials = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
    kitchen, attic = (bed.device(name, env=credentials) for name in ("Kitchen", "Attic"))
    kitchen.run("group", "create", GROUP, "--timers", bed.profile)
    where = ["s3", f"endpoint={server.endpoint}", "bucket=attic", "prefix=home/", "virtual_host=false"]
    added = kitchen.run("store", "add", "Shelf", "--group", GROUP, *where)
    bed.join(kitchen, attic)
    return kitchen, attic, added


def test_a_killed_device_is_replaced_by_what_is_in_the_bucket(bed: Bed, serve: Serve) -> None:
    server = serve(CephServer)
    kitchen, attic, added = group(bed, server)
    assert "cannot fence" not in added
    ledger = bed.install(kitchen, interval=3600)
    ledger.add(kitchen)
    saved = ledger.save(kitchen)
    ledger.verify(kitchen)
    kitchen.kill_everything()
    ledger.wait_for(attic)
    assert ledger.lines(attic) == [0]
    assert saved in ledger.moments(attic)
    ledger.never_twice()
    told = str(attic.entries()) + kitchen.log() + attic.log()
    assert SECRET_KEY not in told and ACCESS_KEY not in told


def test_what_lies_where_nothing_fences_is_not_taken_over_but_comes_back(bed: Bed, serve: Serve) -> None:
    kitchen, attic, added = group(bed, serve(RcloneServer))
    assert "cannot fence" in added and "If-None-Match" in added
    ledger = bed.install(kitchen, interval=3600)
    ledger.add(kitchen)
    ledger.save(kitchen)
    kitchen.kill_everything()
    until(lambda: "bring its device back" in attic.log(), 60, "Attic says what to do")
    assert not ledger.answers(attic) and attic.app()["epoch"] == 1
    kitchen.start()
    until(lambda: ledger.runs_on(kitchen), 60, "the app runs again where it was")
    assert ledger.lines(kitchen) == [0]
    kitchen.run("app", "move", "ledger", attic.name, "--group", GROUP)
    ledger.wait_for(attic)
    ledger.never_twice()
