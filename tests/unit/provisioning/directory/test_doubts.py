"""Settings that work and are probably mistakes: each is told with what to write instead, and what is fine is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import HttpUrl, SecretStr

from provisioning.config import Settings
from provisioning.directory.doubts import about_founding, doubts


def told(directory: Path, **settings: Any) -> list[str]:
    return list(map(str, doubts(Settings(directory=directory, **settings))))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://ca.example.org", ["https://ca.example.org/", "do not fetch CRLs", "use http://", "RFC 5280 §8"]),
        ("https://ca.example.org:8443", ["use http://"]),
        ("http://ca.example.org:8443", ["port 8443 is the HTTPS port", "name the plain HTTP port, 8080"]),
        ("http://ca.example.org:8080", None),
        ("http://ca.example.org", None),
        ("http://ca.example.org:9000/pki", None),
    ],
)
def test_an_address_that_relying_parties_cannot_use_is_told(tmp_path: Path, url: str, words: list[str] | None) -> None:
    found = told(tmp_path, public_http_url=HttpUrl(url))
    assert len(found) == (words is not None)
    assert all(word in found[0] for word in words or [])


def test_a_port_of_both_kinds_is_in_nobodys_way(tmp_path: Path) -> None:
    """Free ones are chosen at the start; one that both have is an error elsewhere."""
    url = HttpUrl("http://ca.example.org:8443")
    assert told(tmp_path, public_http_url=url, port=8443, http_port=8443) == []
    assert told(tmp_path, public_http_url=url, port=0, http_port=0) == []


def test_a_public_listener_needs_a_name_in_certificates(tmp_path: Path) -> None:
    (found,) = told(tmp_path, host="0.0.0.0", public_listener=True)
    assert found.startswith("public_http_url is not set: certificates name 0.0.0.0:8080 as the address of CRL")
    assert "before the first device enrols" in found


@pytest.mark.parametrize(
    ("url", "names", "is_told"),
    [(None, ("ca.example.org",), True), (None, (), False), ("http://ca.example.org:8080", ("ca.example.org",), False)],
)
def test_a_ca_that_names_no_list_is_told_when_it_is_founded(
    tmp_path: Path, url: str | None, names: tuple[str, ...], is_told: bool
) -> None:
    """Later is too late: the address cannot be put into a certificate that is there."""
    settings = Settings(directory=tmp_path, public_http_url=None if url is None else HttpUrl(url))
    found = [str(each) for each in about_founding(settings, names)]
    assert [each.startswith("--public-http-url was not given") for each in found] == [True] * is_told


@pytest.mark.parametrize(
    ("files", "passphrase", "signer", "short"),
    [
        (["issuing-ca"], "fourteen chars", "file", True),
        (["issuing-ca"], "fifteen chars..", "file", False),
        (["issuing-ca"], "fünfzehn Zeich.", "file", False),
        (["issuing-ca"], None, "file", False),
        (["root-ca"], "", "pkcs11:token=x", False),
        (["root-ca"], "short", "pkcs11:token=x", True),
        ([], "short", "pkcs11:token=x", False),
        (["server", "operator"], "short", "file", False),
    ],
)
def test_a_short_passphrase_is_told_if_it_encrypts_a_cas_key(
    tmp_path: Path, files: list[str], passphrase: str | None, signer: str, short: bool
) -> None:
    for name in files:
        (tmp_path / f"{name}.crt").touch()
        (tmp_path / f"{name}.key").touch()
    found = told(tmp_path, passphrase=None if passphrase is None else SecretStr(passphrase), signer=signer)
    assert len(found) == short
    assert not short or "fewer than 15 characters" in found[0]
    assert not any(passphrase in each for each in found if passphrase)


def test_a_passphrase_that_openssl_would_not_read_whole_is_told(tmp_path: Path) -> None:
    """``openssl rand -base64 64`` makes two lines, and openssl's own ``-passin file:`` takes the first."""
    for name in ("issuing-ca.crt", "issuing-ca.key"):
        (tmp_path / name).touch()
    (found,) = told(tmp_path, passphrase=SecretStr("a first line that is long\nand another"))
    assert found.startswith("the passphrase has several lines: openssl reads the first one only")
    assert "openssl rand -hex 24" in found
    assert told(tmp_path, passphrase=SecretStr("one line that is long enough")) == []
