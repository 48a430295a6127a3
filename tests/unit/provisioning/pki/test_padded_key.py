"""EC keys as GnuTLS writes them: the number longer or shorter than the standard says. openssl is the judge."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from device_sim.credentials.credential_file import CredentialFile
from provisioning.pki.keys import KeyFileError, load_key
from provisioning.pki.padded_key import padded_ec_key, padded_ec_key_in
from tests.support.openssl import openssl

CURVES = {
    "P-256": (ec.SECP256R1(), "06082a8648ce3d030107", 32),
    "P-384": (ec.SECP384R1(), "06052b81040022", 48),
    "P-521": (ec.SECP521R1(), "06052b81040023", 66),
}
PLAIN = (Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


def sec1(number: int, octets: int, curve: str) -> bytes:
    """Return an ECPrivateKey, without its optional public key, whose number has so many octets."""
    oid = bytes.fromhex(curve)
    body = b"\x02\x01\x01\x04" + bytes([octets]) + number.to_bytes(octets) + b"\xa0" + bytes([len(oid)]) + oid
    return b"\x30" + bytes([len(body)]) + body


@pytest.mark.parametrize("longer", [1, 0, -1])
@pytest.mark.parametrize("name", CURVES)
def test_whatever_openssl_reads_is_read(tmp_path: Path, name: str, longer: int) -> None:
    curve, oid, octets = CURVES[name]
    number = (
        (1 << (8 * octets - 9)) - 0x1234567
        if longer < 0
        else ec.generate_private_key(curve).private_numbers().private_value
    )
    der = sec1(number, octets + longer, oid)
    file = tmp_path / "device.key"
    file.write_text(
        f"text before\n-----BEGIN EC PRIVATE KEY-----\n{base64.encodebytes(der).decode()}-----END EC PRIVATE KEY-----\n"
    )
    (key,) = CredentialFile.read(file, None).keys
    theirs = load_pem_private_key(openssl("pkey", "-in", file), None)
    assert key.private_bytes(*PLAIN) == theirs.private_bytes(*PLAIN)
    assert load_key(file).private_bytes(*PLAIN) == theirs.private_bytes(*PLAIN)
    file.write_bytes(der)
    assert [each.private_bytes(*PLAIN) for each in CredentialFile.read(file, b"unused").keys] == [
        key.private_bytes(*PLAIN)
    ]


def test_anything_else_is_none() -> None:
    _, oid, octets = CURVES["P-256"]
    assert padded_ec_key(b"") is None
    assert padded_ec_key(ed25519.Ed25519PrivateKey.generate().private_bytes(*PLAIN)) is None
    assert padded_ec_key(sec1(0, octets, oid)) is None
    assert padded_ec_key(sec1((1 << 256) - 1, octets, oid)) is None  # Beyond the order.
    assert padded_ec_key(sec1(1 << 256, octets + 1, oid)) is None
    assert padded_ec_key(sec1(5, octets, "06052b8104000a")) is None  # secp256k1: TLS has no use for it.


def test_what_is_no_key_is_none_in_pem_too(tmp_path: Path) -> None:
    _, oid, octets = CURVES["P-256"]
    for content in (b"", b"a" * 7, sec1(0, octets, oid)):
        pem = f"-----BEGIN EC PRIVATE KEY-----\n{base64.b64encode(content).decode()}x\n-----END EC PRIVATE KEY-----\n"
        assert padded_ec_key_in(pem.encode()) is None
        (tmp_path / "bad.key").write_text(pem)
        with pytest.raises(KeyFileError, match="is not a PEM private key"):
            load_key(tmp_path / "bad.key")
