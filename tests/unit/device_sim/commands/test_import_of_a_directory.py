"""`fleet-sim import` of a directory with more in it than pairs in PEM: PKCS #7, key stores, documents with examples."""

from __future__ import annotations

import subprocess
from base64 import encodebytes
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from typer.testing import CliRunner

from device_sim.cli import app
from tests.support.foreign_ca import ForeignCa
from tests.support.importing_user import ImportingUser, chain_in
from tests.support.openssl import openssl

SAMPLE = (
    "# Devices\n\nA certificate looks like this:\n\n-----BEGIN CERTIFICATE-----\nMIIB...\n-----END CERTIFICATE-----\n"
)
HINT = "to import the others without a file, add --skip with its name, or a pattern: --skip 'README*'"


@pytest.fixture
def place(tmp_path: Path) -> ImportingUser:
    return ImportingUser(tmp_path)


@pytest.mark.parametrize("tool", ["openssl", "openssl der", "cryptography", "certtool", "certutil"])
@pytest.mark.parametrize("holds", ["its chain", "it and its chain"])
def test_a_chain_in_pkcs7(place: ImportingUser, tool: str, holds: str) -> None:
    issuing = ForeignCa("Issuing CA", place.ca)
    held = issuing.issue("meter-1")
    certificate, _ = held.write(place.certs, "meter-1")
    together = [issuing.certificate, place.ca.certificate] + ([held.certificate] if holds != "its chain" else [])
    bundle, chain = place.path / "together.pem", place.certs / "meter-1.p7b"
    bundle.write_bytes(b"".join(each.public_bytes(Encoding.PEM) for each in together))
    if holds != "its chain":
        certificate.unlink()
    if tool == "cryptography":
        chain.write_bytes(pkcs7.serialize_certificates(together, Encoding.PEM))
    elif tool == "certtool":
        made = subprocess.run(
            ["certtool", "--p7-generate", "--load-certificate", bundle, "--outder"], capture_output=True, check=True
        )
        chain.write_bytes(made.stdout)
    elif tool == "certutil":  # Windows: `certutil -encode` calls everything a certificate.
        encoded = encodebytes(pkcs7.serialize_certificates(together, Encoding.DER))
        chain.write_bytes(b"-----BEGIN CERTIFICATE-----\r\n" + encoded + b"-----END CERTIFICATE-----\r\n")
    else:
        form = "DER" if "der" in tool else "PEM"
        chain.write_bytes(openssl("crl2pkcs7", "-nocrl", "-certfile", bundle, "-outform", form))
    assert place.imported() == ""
    assert chain_in(place.read(), "meter-1") == ["CN=meter-1", "CN=Issuing CA"]
    listed = place.listed(
        {"certificate": chain if holds != "its chain" else certificate, "key": place.certs / "meter-1.key",
         "chain": chain, "name": "listed"}
    )  # fmt: skip
    place.fleet = place.path / "other"
    assert place.imported(listed) == ""
    assert chain_in(place.read(), "listed") == ["CN=meter-1", "CN=Issuing CA"]


def test_other_messages_are_left_alone_and_a_damaged_one_is_named(place: ImportingUser) -> None:
    held = place.ca.issue("meter-1")
    held.write(place.certs, "meter-1")
    whole = pkcs7.serialize_certificates([held.certificate], Encoding.DER)
    (place.certs / "mail.pem").write_bytes(
        b"-----BEGIN PKCS7-----\n" + encodebytes(whole.replace(b"\x01\x07\x02", b"\x01\x07\x03", 1))
        + b"-----END PKCS7-----\n"
    )  # fmt: skip
    assert place.imported() == ""
    (place.certs / "chain.p7b").write_bytes(whole[:-9])
    said = place.imported()
    assert f"{place.certs}/chain.p7b holds a certificate that cannot be parsed" in said
    assert "UserWarning" not in said


def test_a_key_store_of_java_is_told_with_what_converts_it(place: ImportingUser) -> None:
    certificate, _ = place.ca.issue("meter-1").write(place.certs, "meter-1")
    store = place.certs / "devices.jks"
    store.write_bytes(b"\xfe\xed\xfe\xed\0\0\0\2")
    assert place.imported() == ""
    assert f"left out: {store}: a Java key store, which is not read: keytool -importkeystore" in place.said
    for row in ({"certificate": store}, {"certificate": certificate, "key": store}):
        assert f"{store} is a Java key store" in place.imported(place.listed(row))


@pytest.mark.parametrize("form", ["DER", "of indefinite length"])
def test_what_keytool_calls_jks_is_read_as_the_pkcs12_that_it_is(place: ImportingUser, form: str) -> None:
    held = place.ca.issue("meter-1")
    pair, store, passphrase = place.path / "pair.pem", place.certs / "devices.jks", place.path / "passphrase"
    passphrase.write_text("changeit")
    certificate, key = held.write(place.path, "meter-1")
    pair.write_bytes(certificate.read_bytes() + key.read_bytes())
    content = openssl("pkcs12", "-export", "-in", pair, "-passout", f"file:{passphrase}")
    if form != "DER":
        content = b"\x30\x80" + content[4:] + b"\0\0"
    store.write_bytes(content)
    assert f"{store} is encrypted: give --passphrase-file" in place.imported()
    assert place.imported(None, "--passphrase-file", str(passphrase)) == ""
    assert place.read().devices == ["meter-1"]


def test_a_document_with_an_example_is_named_and_can_be_left_out(place: ImportingUser) -> None:
    place.ca.issue("meter-1").write(place.certs, "meter-1")
    (place.certs / "README.md").write_text(SAMPLE)
    (place.certs / "doc").mkdir()
    place.ca.issue("example").write(place.certs / "doc", "example")[1].unlink()
    said = place.imported()
    assert f"{place.certs}/README.md holds a certificate that cannot be parsed" in said
    assert f"{place.certs}/doc/example.crt has no private key" in said
    assert said.endswith(HINT)
    as_told = (f"{place.certs}/README.md", f"{place.certs}//doc/")
    for skip in (("README*", "doc"), ("README.md", "./doc/*"), ("*.md", "example.crt"), as_told):
        options = [word for pattern in skip for word in ("--skip", pattern)]
        assert place.imported(None, *options, "--skip", "*.txt") == ""
        assert place.read().devices == ["meter-1"]
        assert place.said.count("nothing there has such a name") == 1
        assert "--skip *.txt: nothing there has such a name" in place.said


def test_skip_is_for_directories(place: ImportingUser) -> None:
    certificate, key = place.ca.issue("meter-1").write(place.certs, "meter-1")
    listed = place.listed({"certificate": certificate, "key": key})
    done = CliRunner().invoke(
        app,
        ["import", str(place.fleet), "--from", str(listed), "--cafile", str(place.path / "ca.pem"), "--backend-cert",
         str(place.path / "backend.crt"), "--backend-key", str(place.path / "backend.key"), "--skip", "x"],
    )  # fmt: skip
    assert done.exit_code == 2
    assert "--skip is for a directory: remove the row" in " ".join(done.stderr.replace("│", "").split())
    certificate.unlink()
    assert "--skip" not in place.imported(listed)
