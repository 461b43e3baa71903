"""I7: what people call things, what they keep secret and what apps store appears in no byte that log or store ever saw."""

from __future__ import annotations

import base64
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fractal.agent.remote import RemoteError
from fractal.demo.tap import searchable
from fractal.testing.agents import Bed, bed, manifest, service

CANARY = "Zq7canary"
SERVER = f"""
import http.server, os, pathlib
data = pathlib.Path(os.environ["DATA"])
(data / "{CANARY}-file").write_text("{CANARY}-content " * 50 + os.environ["SECRET"])
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"{CANARY}-answer")
    def log_message(self, *_): pass
class Server(http.server.HTTPServer):
    def server_bind(self):
        self.socket.bind(self.server_address); self.server_name, self.server_port = "app", self.server_address[1]
print("{CANARY}-output", flush=True)
Server(("127.0.0.1", int(os.environ["PORT"])), Answer).serve_forever()
"""


@pytest.fixture
async def beds(tmp_path: Path) -> AsyncIterator[Bed]:
    async with bed(tmp_path) as made:
        yield made


def forms(secret: bytes) -> list[bytes]:
    """The secret and how it would look in the encodings that are in use."""
    shifted = [base64.urlsafe_b64encode(bytes(n) + secret)[4 if n else 0 : -4] for n in range(3)]
    return [secret, secret.hex().encode(), *(part for part in shifted if len(part) >= 8)]


async def test_no_name_no_secret_and_no_data_is_in_what_log_and_store_saw(beds: Bed) -> None:
    attic, den = f"{CANARY} attic", f"{CANARY} den"
    await beds.start(attic)
    await beds.start(den)
    beds.group = str((await beds.call(attic, "group.create", name=f"{CANARY} group", timers="fast"))["group"])
    shelf = beds.folder / "shelf"
    shelf.mkdir()
    await beds.call(
        attic, "store.add", name=f"{CANARY} shelf", backend="directory", config={"path": str(shelf)}
    )
    await beds.join(den, by=attic, new_member=True)
    environment = 'environment: {SECRET: "{secret.password}", '
    text = manifest(service(code=SERVER).replace("environment: {", environment), title=f"{CANARY} title")
    text = text.replace(
        "x-homeserver:\n  title", "x-homeserver:\n  secrets: {generate: [password, chosen]}\n  title"
    )
    result = await beds.call(
        attic,
        "app.install",
        manifest=text,
        name=f"{CANARY} app",
        device=attic,
        routes=[f"{CANARY.lower()}.example.org"],
        secrets={"chosen": f"{CANARY}-chosen"},
        interval_s=10,
        wait_s=40,
    )
    assert result["done"], await beds.call(attic, "status.show")
    app = result["app"]
    job = beds.at(attic).jobs[app]
    await beds.call(attic, "snapshot.create", app=app, wait_s=30)
    assert job.facts.now.committed is not None
    # Signals and messages pass the log server too, and the other device fetches what the store has.
    await beds.until(lambda: app in beds.at(den).beats[job.group.me].apps)
    with pytest.raises(RemoteError):
        await beds.at(den).remote.ask(job.group.me, "app.logs", {"app": app, "service": CANARY})
    await beds.call(attic, "app.move", app=app, device=den, wait_s=40)
    secrets = [value.encode() for value in job.data.secrets().values()]
    assert len(secrets) >= 4, "both secrets, and the route's certificate with its key"

    seen = {path: path.read_bytes() for path in beds.folder.glob("log.sqlite*")}
    assert sum(len(data) for data in seen.values()) > 10_000
    seen |= {path: path.read_bytes() for path in shelf.rglob("*") if path.is_file()}
    assert any("/object/" in str(path) for path in seen)
    owners = [beds.agents[name].keys for name in (attic, den)]
    keys = [key for owner in owners for key in (owner.box_secret, owner.sign_seed)]
    keys += [beds.at(attic).journal.group_key()[1], *job.data.keyring().secrets.values()]
    values = (CANARY.encode(), CANARY.lower().encode(), *secrets, *keys)
    needles = [form for value in values for form in forms(value)]
    for path, data in seen.items():
        assert CANARY.lower() not in str(path.relative_to(beds.folder)).lower()
        for plain in searchable(data):
            found = [needle for needle in needles if needle in plain]
            assert not found, f"{found[0]!r} in {path.name}"


def test_the_search_finds_what_it_looks_for() -> None:
    for encoded in (CANARY.encode(), base64.urlsafe_b64encode(b"x" + CANARY.encode() + b"yz")):
        plains = list(searchable(b"..." + zlib.compress(encoded)))
        assert any(form in plain for plain in plains for form in forms(CANARY.encode()))
