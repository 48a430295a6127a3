"""A certificate or a key that the library cannot read is refused by its file's name, wherever a user gives it."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
import typer
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, pkcs12

from device_sim.attack.issuer import Issuer
from device_sim.attack.running_fleetgate import _identity_in
from device_sim.commands.given_anchors import given_anchors
from device_sim.credentials.certification import CertificateAuthority, UnusableAuthority
from device_sim.credentials.credential_file import CredentialFile, UnusableCredential
from provisioning.pki.keys import KeyFileError, key_to_pem, load_key
from tests.fuzz.der import encode, parse, places
from tests.support.openssl import openssl
from tests.support.panic import PANIC
from tests.support.pki import Pki
from tests.support.unknown_version import unknown_version
from tests.support.year_0 import SAID, since_year_0

SHORT_KEY = bytes.fromhex("300e020100300506032b657004020400")
"""An Ed25519 private key of no octets."""
UNPARSABLE = "holds a key that cannot be parsed: convert it (openssl pkey -in FILE -out COPY)"


def test_a_certificate_of_an_unknown_version_is_refused_by_the_file_s_name(tmp_path: Path) -> None:
    path = tmp_path / "given.pem"
    path.write_bytes(unknown_version(x509.load_pem_x509_certificate(Pki().anchors.encode())))
    der = tmp_path / "given.der"
    der.write_bytes(ssl.PEM_cert_to_DER_cert(path.read_text()))
    for each in (path, der):
        with pytest.raises(UnusableCredential, match=rf"{each.name} holds a certificate that cannot be parsed \(7 is"):
            CredentialFile.read(each, None)
    with pytest.raises(UnusableAuthority, match=r"given\.pem holds no PEM certificate"):
        CertificateAuthority.load(path, path)
    with pytest.raises(KeyFileError, match=r"given\.pem holds no PEM certificate"):
        Issuer.load(path, path)
    with pytest.raises(KeyFileError, match=r"given\.pem holds no PEM certificate"):
        _identity_in(path)
    with pytest.raises(typer.BadParameter, match=r"given\.pem holds no whole PEM certificate"):
        given_anchors(path, "take another")


@pytest.mark.parametrize("form", [Encoding.PEM, Encoding.DER])
def test_a_certificate_of_a_time_that_cannot_be_read_is_refused_by_the_file_s_name(
    tmp_path: Path, form: Encoding
) -> None:
    device = (pki := Pki()).device("meter-1")
    path = tmp_path / "given.crt"
    path.write_bytes(since_year_0(device.certificate, pki.issuing.key).public_bytes(form))
    with pytest.raises(UnusableCredential, match=rf"given\.crt holds a certificate that cannot be parsed \({SAID}"):
        CredentialFile.read(path, None)


def test_a_key_of_another_length_than_its_kind_s_is_of_no_use(tmp_path: Path) -> None:
    """For which `cryptography` has an error of its own: a report of a bug of its own."""
    der, pem = tmp_path / "given.key", tmp_path / "given.pem"
    der.write_bytes(SHORT_KEY)
    pem.write_text(ssl.DER_cert_to_PEM_cert(SHORT_KEY).replace("CERTIFICATE", "PRIVATE KEY"))
    for path in (der, pem):
        found = CredentialFile.read(path, None)
        assert (found.keys, found.unusable) == ([], UNPARSABLE)


def test_a_key_at_which_the_library_panics_is_of_no_use(tmp_path: Path) -> None:
    """A panic is no `Exception`."""
    path = tmp_path / "given.key"
    path.write_text(PANIC)
    found = CredentialFile.read(path, b"secret")
    assert found.keys == []
    assert found.unusable is not None
    with pytest.raises(KeyFileError, match=r"given\.key is not a PEM private key, or the passphrase is wrong"):
        load_key(path, b"secret")


def test_a_pkcs_12_with_a_certificate_of_an_unknown_version_is_refused_by_its_name(tmp_path: Path) -> None:
    device, path = Pki().device("meter-1"), tmp_path / "given.p12"
    (tmp_path / "both.pem").write_bytes(key_to_pem(device.key) + unknown_version(device.certificate))
    openssl("pkcs12", "-export", "-in", tmp_path / "both.pem", "-out", path, "-passout", "pass:x")
    with pytest.raises(UnusableCredential, match=r"given\.p12 cannot be opened \(7 is not a valid X509 version\)"):
        CredentialFile.read(path, b"x")


def test_a_pkcs_12_with_a_key_of_another_length_than_its_kind_s_is_refused_by_its_name(tmp_path: Path) -> None:
    """The library reports a bug of its own; without a MAC, which would be wrong first."""
    device, path = Pki().device("meter-1"), tmp_path / "given.p12"
    made = parse(pkcs12.serialize_key_and_certificates(b"m", device.key, device.certificate, None, NoEncryption()))
    assert made is not None
    outermost = made[0].content
    assert isinstance(outermost, list)
    del outermost[2:]
    octets = device.key.private_numbers().private_value.to_bytes(32)
    (private,) = [found[place] for found, place in places(made) if found[place].content == octets]
    private.content = octets * 2
    path.write_bytes(encode(made))
    with pytest.raises(UnusableCredential, match=r"given\.p12 cannot be opened \(a key in it cannot be parsed\)"):
        CredentialFile.read(path, None)
