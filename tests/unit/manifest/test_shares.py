"""Top-level volumes that an engine mounts: what may be said of them, and what they are called where they are allowed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fractal.api.app import AppSpec, Mount
from fractal.manifest import Given, check, parse
from fractal.manifest.rules import problems


def text_of(options: str) -> str:
    return f"services: {{a: {{image: x, volumes: ['v:/v']}}}}\nvolumes: {{v: {{driver_opts: {options}}}}}\n"


@pytest.mark.parametrize(
    ("options", "need"),
    [
        ("{type: nfs, device: ':/films', o: 'addr=nas.lan,nfsvers=4,nolock,soft,rw'}", "nfs:nas.lan:/films"),
        ("{type: nfs4, device: 'nas.lan:/films', o: 'rw,hard'}", "nfs4:nas.lan:/films"),
        ("{type: nfs, device: '192.0.2.7:/', o: 'addr=192.0.2.7'}", "nfs:192.0.2.7:/"),
        ("{type: nfs, device: '[2001:db8::7]:/x', o: 'addr=2001:DB8::7'}", "nfs:[2001:db8::7]:/x"),
        (
            "{type: cifs, device: //u1.nas.example/backup, o: 'addr=u1.nas.example,username=u1,password=,vers=3.0,uid=7'}",
            "cifs://u1.nas.example/backup",
        ),
    ],
)
def test_a_share_is_allowed_by_the_server_and_path_that_are_mounted(options: str, need: str) -> None:
    found = check(text_of(options))
    assert not found.refused and [option for option, _ in found.needs] == [f"--allow mount:{need}"]
    (mount,) = parse(text_of(options), given=Given(allowed=frozenset({f"mount:{need}"}))).services[0].mounts
    assert mount.engine["volume"] == "v"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        # Another server, or another share, than the one whose name is allowed.
        ("{type: nfs, device: 'nas.lan:/films', o: 'addr=192.0.2.66'}", "another server"),
        ("{type: cifs, device: //nas/films, o: 'ip=192.0.2.66'}", "another server"),
        ("{type: nfs, device: ':/films', o: 'addr=nas.lan,addr=192.0.2.66'}", "or several are"),
        ("{type: nfs, device: ':/films', o: 'addr=nas:/public/x'}", "not a server"),
        ("{type: nfs, device: ':/films'}", "its server is not named"),
        ("{type: nfs, device: 'nas:/films/../private'}", "leads out"),
        ("{type: cifs, device: '//nas/films/../private'}", "leads out"),
        ("{type: cifs, device: '//nas/films\\..\\private'}", "not supported"),
        ("{type: cifs, device: '//me:pass@nas/films'}", "not supported"),
        ("{type: cifs, device: //nas/films, o: 'unc=//other/films'}", "'unc'"),
        ("{type: cifs, device: //nas/films, o: 'source=//other/films'}", "'source'"),
        ("{type: cifs, device: //nas/films, o: 'prefixpath=private'}", "'prefixpath'"),
        ("{type: nfs, device: 'nas:/films', o: 'mountaddr=192.0.2.66'}", "'mountaddr'"),
        # Files of the device.
        ("{type: cifs, device: //nas/films, o: 'credentials=/etc/shadow'}", "'credentials'"),
        ("{type: cifs, device: //nas/films, o: 'creds=/etc/shadow'}", "'creds'"),
        ("{type: cifs, device: //nas/films, o: 'cruid=0,multiuser'}", "'cruid'"),
        ("{type: tmpfs, device: tmpfs, o: 'size=1m,loop=/etc/shadow'}", "'loop'"),
        ("{type: tmpfs, device: tmpfs, o: 'size=1m, remount'}", "' remount'"),
        ("{type: tmpfs, device: /dev/sda}", "not supported"),
        ("{type: overlay, device: overlay, o: 'lowerdir=/etc'}", "not supported"),
        ("{type: ext4, device: /dev/sda1}", "not supported"),
        ("{type: ' none', device: /etc, o: bind}", "not supported"),
        ("{type: None, device: /etc, o: bind}", "not supported"),
        ("{type: nfs, device: 'nas:/films', o: bind}", "'bind'"),
        ("{type: none, device: /srv/x, o: 'bind,remount'}", "'remount'"),
        # Nothing is left aside in silence.
        ("{type: none, device: /srv/x, o: 'bind,ro'}", "write `ro` where"),
        ("{type: none, device: /srv/x, o: bind, mode: '0700'}", "option 'mode'"),
        ("{type: tmpfs, device: tmpfs, volume: other}", "not supported"),
        ("{type: tmpfs, device: tmpfs, mode: '0700'}", "option 'mode'"),
        ("{type: nfs, device: 'nas:/films', o: [rw]}", "expected text"),
    ],
)
def test_what_an_engine_is_not_asked_for(options: str, words: str) -> None:
    found = check(text_of(options)).refused
    assert any(words in f.text and f.line == 2 for f in found), found


def test_a_secret_of_a_share_is_allowed_by_name_or_refused_and_never_told() -> None:
    share = "{type: cifs, device: //nas/films, o: 'username=me,password=${PASSWORD}'}"
    given = check(text_of(share), given=Given(values={"PASSWORD": "hush"}))
    assert not given.refused
    assert {o for o, _ in given.needs} == {
        "--allow visible-secret:PASSWORD",
        "--allow mount:cifs://nas/films",
    }
    made = check(text_of(share) + "x-homeserver: {secrets: {generate: [PASSWORD]}}")
    assert ["no place for a secret" in f.text for f in made.refused] == [True]
    (wrong,) = check(text_of("{type: cifs, device: //nas/films, o: 'password2=hush'}")).refused
    assert "hush" not in wrong.text


def test_a_specification_of_the_log_is_held_to_the_same() -> None:
    """Whoever manages the app on another device may have written it without a manifest."""
    spec = parse(text_of("{type: tmpfs, device: tmpfs}"))
    share = {"type": "nfs", "device": "nas:/films", "volume": "v", "o": "addr=192.0.2.66"}
    assert any("another server" in reason for _, reason in problems(with_mount(spec, share)))
    assert any("is not allowed" in reason for _, reason in problems(with_mount(spec, {**share, "o": ""})))


def with_mount(spec: AppSpec, engine: dict[str, str]) -> AppSpec:
    (service,) = spec.services
    mount = Mount(volume="", target="/v", engine=engine)
    return replace(spec, services=(replace(service, mounts=(mount,)),))
