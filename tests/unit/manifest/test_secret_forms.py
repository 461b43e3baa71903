"""Generated secrets have the form that is asked for, and use what randomness they are given."""

from __future__ import annotations

import re
from base64 import b64decode

import pytest

from fractal.manifest.secret_forms import by_name, known, make
from fractal.testing.group import SeededEntropy


@pytest.mark.parametrize(
    ("form", "pattern"),
    [
        ("hex:7", "[0-9a-f]{7}"),
        ("alphanumeric:64", "[A-Za-z0-9]{64}"),
        ("name:16", "[a-z]{16}"),
        ("base64url:32", "[A-Za-z0-9_-]{43}"),
        ("base64:32", "[A-Za-z0-9+/]{43}="),
    ],
)
def test_forms(form: str, pattern: str) -> None:
    entropy = SeededEntropy()
    made = [make(form, entropy.bytes) for _ in range(50)]
    assert all(re.fullmatch(pattern, one) for one in made)
    assert len(set(made)) == 50


def test_letters_are_equally_likely_and_none_comes_from_thin_air() -> None:
    assert len(b64decode(make("base64:64", lambda n: b"\xff" * n))) == 64
    first, last = make("name:8", bytes), make("name:8", lambda n: bytes([233] * n))
    assert (first, last) == ("a" * 8, "z" * 8)
    drawn = iter([b"\xff" * 8, bytes(8)])
    assert make("name:8", lambda _: next(drawn)) == "a" * 8  # 255 would favour the first letters


def test_unknown_forms_are_none() -> None:
    for form in ("", "hex", "hex:0", "hex:257", "hex:-1", "md5:32", "hex:64\n"):
        assert not known(form)
    with pytest.raises(ValueError, match="no form"):
        make("md5:32", bytes)


def test_forms_by_name() -> None:
    assert by_name("SERVICE_PASSWORD_DB") == "alphanumeric:32"
    assert by_name("SERVICE_BASE64_128_KEY") == "alphanumeric:128"
    assert by_name("SERVICE_PASSWORD_999_X") == ""
    for other in ("SERVICE_PASSWORD", "SERVICE_URL_X", "MY_SERVICE_PASSWORD_X", "service_password_x"):
        assert by_name(other) == ""
