"""A file that holds a certificate of a version that the library does not know is said to hold none: no traceback."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509

from broker.credentials.own_certificate import certificate_of
from broker.credentials.own_certificate import read_certificate as broker_s
from provisioning.authorities.next_authority import _read
from provisioning.ca.ceremony import CeremonyRefused, read_issuing_ca_csr
from provisioning.client.genuine_server import trust_domain_of
from provisioning.directory.files import AuthorityFiles, read_certificate
from provisioning.doctor.doctor_own_certificates import _wrong_with_bundle
from provisioning.errors import ConfigurationError
from provisioning.pki.tls import CredentialPem, TlsConfigurationError
from tests.support.pki import Pki
from tests.support.requests import csr_der
from tests.support.unknown_version import unknown_version


@pytest.fixture(scope="module")
def pem() -> bytes:
    return unknown_version(x509.load_pem_x509_certificate(Pki().anchors.encode()))


def test_in_the_service_s_directory(tmp_path: Path, pem: bytes) -> None:
    path = tmp_path / "ca-bundle.crt"
    path.write_bytes(pem)
    with pytest.raises(ConfigurationError, match=r"ca-bundle\.crt is not a PEM certificate"):
        read_certificate(path)
    assert "holds no certificates" in str(_wrong_with_bundle(AuthorityFiles(tmp_path)))


def test_in_a_ceremony(pem: bytes) -> None:
    with pytest.raises(ConfigurationError, match="the certificate is no PEM certificate"):
        _read(pem, "certificate")
    with pytest.raises(CeremonyRefused, match=r"not a PKCS #10 request in PEM"):
        read_issuing_ca_csr(unknown_version(x509.load_der_x509_csr(csr_der())))


def test_of_a_client(tmp_path: Path, pem: bytes) -> None:
    with pytest.raises(TlsConfigurationError, match="holds no PEM certificate"):
        trust_domain_of(CredentialPem(pem))
    path = tmp_path / "broker.pem"
    path.write_bytes(pem)
    assert broker_s(path) is None
    assert certificate_of(CredentialPem(pem)) is None
