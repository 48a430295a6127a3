"""A corpus of requests that nobody's library would make, against the running service, by curl."""

from __future__ import annotations

import base64
from collections.abc import Callable

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import pkcs7
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID

from tests.support.curl import Curl
from tests.support.hostile_requests import body, harmless, refused
from tests.support.openssl import OpensslDevice
from tests.support.provisioning import ProvisioningService

EXTENSIONS = {
    ExtensionOID.BASIC_CONSTRAINTS,
    ExtensionOID.KEY_USAGE,
    ExtensionOID.EXTENDED_KEY_USAGE,
    ExtensionOID.SUBJECT_KEY_IDENTIFIER,
    ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
    ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
    ExtensionOID.CRL_DISTRIBUTION_POINTS,
    ExtensionOID.AUTHORITY_INFORMATION_ACCESS,
}


def test_what_must_be_refused_is_refused_by_name_and_spends_nothing(
    service: ProvisioningService, stranger: Curl, device: OpensslDevice
) -> None:
    user = ("--user", f"{device.name}:{service.token(device=device.name, group='north')}")
    before = service.stored("SELECT count(*) FROM certificates")
    for what, make in refused():
        for operation in ("simpleenroll", "serverkeygen"):
            answer = stranger.est(operation, body(make(device.name)), *user)
            assert 400 <= answer.status < 500, (what, operation, answer.status, answer.text)
            assert answer.text.split(":")[0] in REFUSALS[operation], (what, operation, answer.text)
            assert answer.text.isprintable() or answer.text[:-1].isprintable(), (what, answer.text)
    assert service.stored("SELECT count(*) FROM certificates") == before
    assert "Traceback" not in service.log
    assert "\x1b[2J" not in service.log
    assert stranger.est("simpleenroll", device.request(), *user).status == 200, "the token is unspent"


REFUSALS = {
    "simpleenroll": {"CSR_MALFORMED", "CSR_KEY", "CSR_NAME", "CSR_SIGNATURE"},
    # The group makes no keys: whoever has come so far has a request that can be read.
    "serverkeygen": {"CSR_MALFORMED", "CSR_NAME", "SERVER_KEYS_REFUSED"},
}


@pytest.mark.parametrize(("what", "make"), list(harmless()), ids=[what for what, _ in harmless()])
def test_what_is_certified_has_nothing_of_what_it_asked_for(
    service: ProvisioningService, stranger: Curl, device: OpensslDevice, what: str, make: Callable[[str], bytes]
) -> None:
    name = device.name[:50]
    user = ("--user", f"{name}:{service.token(device=name, group='north')}")
    answer = stranger.est("simpleenroll", body(make(name)), *user)
    assert answer.status == 200, (what, answer.text)
    (certificate,) = pkcs7.load_der_pkcs7_certificates(base64.b64decode(answer.body))
    assert [each.value for each in certificate.subject] == [name]
    assert certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert {each.oid for each in certificate.extensions} <= EXTENSIONS
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    (uri,) = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert uri.value == f"spiffe://fleet.internal/device/north/{name}"
    identifier = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    assert identifier == x509.SubjectKeyIdentifier.from_public_key(certificate.public_key())
