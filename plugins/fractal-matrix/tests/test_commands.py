"""`homeserver login` and `homeserver logout` against a real Synapse."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from fractal_matrix.accounts import Accounts
from fractal_matrix.testing import Synapse

from fractal.api.errors import InvalidInput
from fractal.cli.main import cli

PASSWORD = "a password"


class Device:
    """A device's configuration and state on disk."""

    def __init__(self, folder: Path, backend: str = "matrix") -> None:
        self.config = folder / "config.toml"
        self.config.write_text(
            f'[device]\nname = "Attic"\nstate_dir = "{folder}/state"\n[coordination]\nbackend = "{backend}"\n'
        )
        self.state = folder / "state" / "coordination" / "matrix"

    def run(self, *argv: str, stdin: str = "") -> Result:
        return CliRunner().invoke(cli, ["--config", str(self.config), *argv], input=stdin)

    @property
    def accounts(self) -> Accounts:
        return Accounts(self.state)


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path)


def test_a_password_becomes_a_login_in_a_private_file(
    device: Device, server: Synapse, anna: str, tmp_path: Path
) -> None:
    """The password is nowhere; the token in one file that nobody else may read."""
    registration = tmp_path / "token.txt"
    registration.write_text("some-token\n")
    asked = ("login", "--server", server.url, "--user", anna, "--registration-token-file", str(registration))
    done = device.run(*asked, stdin=f"{PASSWORD}\n")
    assert done.exit_code == 0, done.output
    assert f"@{anna}:hs.test" in done.output
    assert PASSWORD not in done.output
    known = device.accounts.known()
    account = known.logins[server.url]
    assert (account.user, known.home, known.registration) == (
        f"@{anna}:hs.test",
        server.url,
        {server.url: "some-token"},
    )
    path = device.accounts.path
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert account.token not in done.output
    assert PASSWORD not in path.read_text()
    whoami = server.call("GET", "/_matrix/client/v3/account/whoami", None, account.token)
    assert whoami["user_id"] == account.user


def test_logging_in_again_ends_the_earlier_login(device: Device, server: Synapse, anna: str) -> None:
    """No token is left behind on the homeserver; logging out ends the last one."""
    asked = ("login", "--server", server.url, "--user", anna, "--password-file", "-")
    assert device.run(*asked, stdin=f"{PASSWORD}\n").exit_code == 0
    first = device.accounts.known().logins[server.url].token
    assert device.run(*asked, stdin=f"{PASSWORD}\n").exit_code == 0
    second = device.accounts.known().logins[server.url].token
    assert not works(server, first)
    assert works(server, second)
    done = device.run("logout")
    assert done.exit_code == 0, done.output
    assert not works(server, second)
    assert device.accounts.known().logins == {}
    assert isinstance(device.run("logout").exception, Exception)


def test_a_token_from_elsewhere(device: Device, server: Synapse, tmp_path: Path) -> None:
    """Instead of a password."""
    token = server.account(f"carl-{os.urandom(4).hex()}")
    file = tmp_path / "token"
    file.write_text(token)
    done = device.run("login", "--server", server.url, "--token-file", str(file))
    assert done.exit_code == 0, done.output
    assert device.accounts.known().logins[server.url].token == token


@pytest.mark.parametrize(
    ("argv", "stdin", "said"),
    [
        (("--user", "anna", "--password-file", "-"), "wrong\n", "does not let anna in"),
        (("--token-file", "-"), "wrong\n", "does not accept the access token"),
        (("--user", "anna", "--password-file", "/nonexistent"), "", "cannot be read"),
        (("--user", "anna", "--password-file", "-"), "\n", "holds nothing"),
        ((), "", "--user"),
    ],
)
def test_what_does_not_count_changes_nothing(
    device: Device, server: Synapse, anna: str, argv: tuple[str, ...], stdin: str, said: str
) -> None:
    """And says why."""
    done = device.run("login", "--server", server.url, *argv, stdin=stdin)
    assert done.exit_code != 0
    assert said in done.output + str(done.exception)
    assert not device.accounts.path.exists()


@pytest.mark.parametrize(
    "server",
    [
        "http://example.org",
        "ftp://example.org",
        "https://",
        "https://user:pass@example.org",
        "https://example.org/path",
        "a b",
    ],
)
def test_other_urls_are_refused(device: Device, server: str) -> None:
    """Before any password goes anywhere."""
    done = device.run("login", "--server", server, "--user", "anna", "--password-file", "-", stdin="x\n")
    assert done.exit_code != 0
    assert isinstance(done.exception, InvalidInput)
    assert "https" in str(done.exception)


def test_another_backend_says_what_to_set(tmp_path: Path, server: Synapse) -> None:
    """A login that nothing would use."""
    done = Device(tmp_path, "sqlite").run("login", "--server", server.url, "--user", "anna", stdin="x\n")
    assert "coordination.backend" in str(done.exception)


def works(server: Synapse, token: str) -> bool:
    try:
        server.call("GET", "/_matrix/client/v3/account/whoami", None, token)
    except OSError:
        return False
    return True
