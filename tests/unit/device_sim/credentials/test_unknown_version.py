"""A certificate of a version that the library does not know is refused by its file's name, wherever a user gives it."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
import typer
from cryptography import x509

from device_sim.attack.issuer import Issuer
from device_sim.attack.running_fleetgate import _identity_in
from device_sim.commands.given_anchors import given_anchors
from device_sim.credentials.certification import CertificateAuthority, UnusableAuthority
from device_sim.credentials.credential_file import CredentialFile, UnusableCredential
from provisioning.pki.keys import KeyFileError
from tests.support.pki import Pki
from tests.support.unknown_version import unknown_version


def test_it_is_refused_by_the_file_s_name(tmp_path: Path) -> None:
    path = tmp_path / "given.pem"
    path.write_bytes(unknown_version(x509.load_pem_x509_certificate(Pki().anchors.encode())))
    with pytest.raises(UnusableCredential, match=r"given\.pem"):
        CredentialFile.read(path, None)
    der = tmp_path / "given.der"
    der.write_bytes(ssl.PEM_cert_to_DER_cert(path.read_text()))
    with pytest.raises(UnusableCredential, match=r"given\.der"):
        CredentialFile.read(der, None)
    with pytest.raises(UnusableAuthority, match=r"given\.pem holds no PEM certificate"):
        CertificateAuthority.load(path, path)
    with pytest.raises(KeyFileError, match=r"given\.pem holds no PEM certificate"):
        Issuer.load(path, path)
    with pytest.raises(KeyFileError, match=r"given\.pem holds no PEM certificate"):
        _identity_in(path)
    with pytest.raises(typer.BadParameter, match=r"given\.pem holds no whole PEM certificate"):
        given_anchors(path, "take another")
