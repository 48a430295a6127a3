"""Settings of trust: what would let anybody on the way say whom to believe is refused, with the remedy."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from broker.settings.trust_settings import TrustSettings

PIN = "ab" * 32
URL = "https://ca.example/anchors.pem"
PLAIN = "http://ca.example/anchors.pem"


def settings(**given: Any) -> TrustSettings:
    return TrustSettings(name="ours", unsafe_no_revocation=True, **given)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "ours: anchors: name files or directories of CA certificates, or anchors_url"),
        ({"anchors": "a.pem", "anchors_sha256": [PIN]}, "anchors_url_cafile and anchors_sha256 go with anchors_url"),
        ({"anchors": "a.pem", "anchors_url_cafile": "c.pem"}, "go with anchors_url"),
        ({"anchors_url": URL}, "an https server is verified only with anchors_url_cafile; give it"),
        ({"anchors_url": URL, "anchors_sha256": [PIN]}, "or use http:// with anchors_sha256"),
        ({"anchors_url": PLAIN}, "by http:// anybody may answer, so anchors_sha256 says which"),
        ({"anchors_url": PLAIN, "anchors_url_cafile": "c.pem"}, "by http:// anybody may answer"),
        ({"anchors_url": PLAIN, "anchors_url_cafile": "c.pem", "anchors_sha256": [PIN]}, "by http:// anybody"),
        ({"anchors_url": "ftp://ca.example/a"}, "https://, with anchors_url_cafile; or http://, with anchors_sha256"),
        ({"anchors_url": PLAIN, "anchors_sha256": ["abc"]}, "'abc' is not the SHA-256 of a certificate: 64 hexa"),
    ],
)
def test_an_answer_that_nothing_vouches_for_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as raised:
        settings(**given)
    assert words in str(raised.value)


@pytest.mark.parametrize(
    "given",
    [
        {"anchors": "a.pem"},
        {"anchors_url": URL, "anchors_url_cafile": "c.pem"},
        {"anchors_url": URL, "anchors_url_cafile": "c.pem", "anchors_sha256": [PIN]},
        {"anchors_url": PLAIN, "anchors_sha256": [PIN]},
        {"anchors": "a.pem", "anchors_url": PLAIN, "anchors_sha256": [PIN]},
    ],
)
def test_files_an_own_ca_and_pins_are_reasons(given: dict[str, Any]) -> None:
    assert settings(**given).anchors_url == given.get("anchors_url")


def test_a_pin_is_read_as_tools_print_it() -> None:
    assert settings(anchors_url=PLAIN, anchors_sha256=["AB:" * 31 + "AB"]).anchors_sha256 == (PIN,)
