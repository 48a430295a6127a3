"""Private key files: nobody else reads them, nothing is overwritten; an error names the remedy, never the secret."""

from __future__ import annotations

import base64
import errno
import os
import re
import ssl
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, x25519

from provisioning.pki.keys import (
    KeyFileError,
    generate_key,
    key_identifier,
    key_to_pem,
    load_key,
    opened_anew,
    write_private,
)
from tests.support.few_rounds import SHIPPED, as_shipped
from tests.support.pki import shared_device
from tests.support.planted import Planted
from tests.support.slow_keys import rsa_key

SECRET = b"a secret of the test"


@pytest.mark.parametrize(
    "key",
    [generate_key(), ed25519.Ed25519PrivateKey.generate(), rsa_key()],
    ids=["EC", "Ed25519", "RSA"],
)
@pytest.mark.parametrize("passphrase", [None, SECRET])
def test_a_key_is_written_for_its_owner_alone_and_read_again(
    tmp_path: Path, key: ec.EllipticCurvePrivateKey, passphrase: bytes | None
) -> None:
    path = tmp_path / "key.pem"
    write_private(path, key_to_pem(key, passphrase))
    assert path.stat().st_mode & 0o777 == 0o600
    assert (b"ENCRYPTED" in path.read_bytes()) is (passphrase is not None)
    assert load_key(path, passphrase).public_key() == key.public_key()


def test_whoever_has_copied_an_encrypted_key_needs_long_for_each_guess(tmp_path: Path) -> None:
    """As openssl reads it: OWASP's rounds for PBKDF2 with SHA-256, and neither salt nor vector used twice."""
    key, path = generate_key(), tmp_path / "key.pem"
    with as_shipped():
        again = key_to_pem(key, SECRET)
        write_private(path, key_to_pem(key, SECRET))
    told = subprocess.run(
        ["openssl", "asn1parse", "-in", path], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    (rounds,) = re.findall(r"INTEGER +:(\w+)", told)
    assert int(rounds, 16) == SHIPPED >= 600_000
    for words in ("PBES2", "PBKDF2", "hmacWithSHA256", "aes-256-cbc"):
        assert words in told
    salt, vector = re.findall(r"OCTET STRING +\[HEX DUMP\]:(\w{32})$", told, re.MULTILINE)
    assert salt != vector
    assert bytes.fromhex(salt) not in base64.b64decode("".join(again.decode().splitlines()[1:-1]))
    opened = subprocess.run(
        ["openssl", "pkcs8", "-in", path, "-passin", f"pass:{SECRET.decode()}"],
        capture_output=True, check=True, timeout=60,
    ).stdout  # fmt: skip
    assert opened == key_to_pem(key)


@pytest.mark.parametrize("linked", [False, True], ids=["a file", "a link"])
def test_what_somebody_has_put_in_a_draft_s_place_is_not_written_to(tmp_path: Path, *, linked: bool) -> None:
    draft = tmp_path / "key.new"
    planted = Planted.at(draft, linked=linked)
    with os.fdopen(opened_anew(draft), "wb") as file:
        file.write(SECRET)
    assert planted.read() == b""
    assert (draft.read_bytes(), draft.is_symlink(), draft.stat().st_mode & 0o777) == (SECRET, False, 0o600)


def refusal(path: Path, passphrase: bytes | None = None) -> str:
    with pytest.raises(KeyFileError) as caught:
        load_key(path, passphrase)
    said = str(caught.value)
    assert str(path) in said
    assert SECRET.decode() not in said
    return said


def test_what_cannot_be_read_is_said_with_its_remedy(tmp_path: Path) -> None:
    plain, encrypted, other, junk, short = (tmp_path / f"key-{number}" for number in range(5))
    write_private(plain, key_to_pem(generate_key()))
    write_private(encrypted, key_to_pem(generate_key(), SECRET))
    junk.write_bytes(b"nothing")
    short.write_text(
        ssl.DER_cert_to_PEM_cert(bytes.fromhex("300e020100300506032b657004020400")).replace(
            "CERTIFICATE", "PRIVATE KEY"
        )
    )
    pkcs8 = serialization.PrivateFormat.PKCS8
    agreement = x25519.X25519PrivateKey.generate()
    other.write_bytes(agreement.private_bytes(serialization.Encoding.PEM, pkcs8, serialization.NoEncryption()))
    assert refusal(encrypted).endswith(f"give a copy that is not (openssl pkey -in {encrypted} -out COPY)")
    assert refusal(plain, SECRET).endswith("is not encrypted: give no passphrase")
    assert refusal(encrypted, SECRET + b"!").endswith("or the passphrase is wrong")
    for each in (junk, short):  # The latter is an Ed25519 key of no octets.
        assert refusal(each).endswith("is not a PEM private key, or the passphrase is wrong")
    assert "X25519PrivateKey, where an EC, RSA or Ed25519 key is needed" in refusal(other)
    assert refusal(tmp_path / "none").endswith(": No such file or directory; put it there, or name one that is")


@pytest.mark.skipif(os.geteuid() != 0, reason="who is not root has no file of another user's")
def test_a_key_of_another_user_s_is_used_as_that_user(tmp_path: Path) -> None:
    """A ceremony run by another than the service's user said that permission was denied, and nothing else."""
    path = tmp_path / "key.pem"
    write_private(path, key_to_pem(generate_key()))
    os.seteuid(65534)
    try:
        said = refusal(path)
    finally:
        os.seteuid(0)
    assert said.endswith("cannot be read: Permission denied; run this as the user whose it is")


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    write_private(path, b"one")
    with pytest.raises(KeyFileError, match="exists already; move it away first"):
        write_private(path, b"two")
    assert path.read_bytes() == b"one"
    with pytest.raises(KeyFileError, match="cannot be written: No such file or directory"):
        write_private(tmp_path / "none" / "key.pem", b"two")


def test_a_key_identifier_is_the_one_that_certificates_say() -> None:
    held = shared_device("meter-1")
    assert key_identifier(held.key.public_key()) != held.revocation.key[0], "that is its issuer's"
    assert len(key_identifier(held.key.public_key())) == 20


def test_of_a_key_that_cannot_be_written_whole_nothing_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "key.pem"
    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", full)
        with pytest.raises(KeyFileError, match=r"key\.pem cannot be written: No space left on device$"):
            write_private(path, key_to_pem(generate_key()))
    assert not path.exists()
    write_private(path, key_to_pem(generate_key()))
