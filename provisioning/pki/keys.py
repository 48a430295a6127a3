"""Private keys: generated, written so that only their owner can read them, loaded, and fingerprinted.

Rules
-----
1. A key file is created with mode 0600 in one step and never overwrites another file.
2. A draft that will replace another file is always a new file: whatever has its name, say put there by someone who may
   write to the directory, is removed, and neither followed nor written to.
3. An error names the file and the remedy, never the key or the passphrase.
4. What is written is on disk, with its name, before the caller goes on: a certificate that outlives its key in a power
   failure is worth nothing.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InternalError, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes, PrivateKeyTypes

from provisioning.pki.key_encryption import encrypted
from provisioning.pki.padded_key import padded_ec_key_in
from provisioning.pki.panic import GaveUp, without_panic
from provisioning.program.durable_names import replace_by, sync_content, sync_names
from provisioning.program.given_file import PEM_BYTES, contents_of

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
"""The types of private key that this project signs with."""

UNREADABLE_KEY: Final = (ValueError, UnsupportedAlgorithm, InternalError)
"""What `cryptography` raises for a private key that it cannot parse; the last for an Ed25519 key of another length."""


class KeyFileError(Exception):
    """A key file cannot be read, written or decrypted; the text names the file and says what to do."""


def generate_key() -> ec.EllipticCurvePrivateKey:
    """Return a new ECDSA P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_to_pem(key: PrivateKey, passphrase: bytes | None = None) -> bytes:
    """Return *key* as PKCS #8 PEM, encrypted when a passphrase is given."""
    form = serialization.PrivateFormat.PKCS8
    if passphrase is not None:
        return encrypted(key.private_bytes(serialization.Encoding.DER, form, serialization.NoEncryption()), passphrase)
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def write_private(path: Path, content: bytes) -> None:
    """Create *path* with mode 0600 holding *content*; raise `KeyFileError` if it exists already, or cannot be written.

    It is there whole or not at all, whatever ends the process: half a key would be in the way of the next one.
    """
    draft = path.with_name(f".{secrets.token_hex(8)}.new")
    try:
        try:
            write_draft(draft, content)
            _name_it(draft, path)
        finally:
            draft.unlink(missing_ok=True)
        try:
            sync_names(path.parent)
        except OSError:
            path.unlink(missing_ok=True)
            raise
    except FileExistsError:
        raise KeyFileError(f"{path} exists already; move it away first, it is never overwritten") from None
    except OSError as error:
        raise KeyFileError(f"{path} cannot be written: {error.strerror}") from error


def _name_it(draft: Path, path: Path) -> None:
    """Give what is at *draft* the name *path*, which nothing has. Raises `FileExistsError`, or another `OSError`."""
    try:
        path.hardlink_to(draft)
    except FileExistsError:
        raise
    except OSError:  # A file system without hard links: two processes at the same moment are told apart by this.
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        draft.replace(path)


def replace_private(path: Path, content: bytes) -> None:
    """Replace *path* atomically by a file of mode 0600 that holds *content*: a crash leaves one or the other.

    When this returns, it is the new one, on disk. Raises `OSError`.
    """
    draft = path.with_suffix(".draft")
    write_draft(draft, content)
    replace_by(draft, path)


def opened_anew(path: Path) -> int:
    """Return a new, empty file at *path*, open for writing, mode 0600, in place of whatever has that name.

    Raises `OSError`, also if another process creates one there at the same moment.
    """
    path.unlink(missing_ok=True)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def write_draft(path: Path, content: bytes) -> None:
    """Write *content*, mode 0600, to what will be renamed, in place of whatever is there. Raises `OSError`."""
    with os.fdopen(opened_anew(path), "wb") as file:
        file.write(content)
        sync_content(file)


def load_key(path: Path, passphrase: bytes | None = None) -> PrivateKey:
    """Return the private key in *path*; raise `KeyFileError` naming the file and the remedy."""
    try:
        pem = contents_of(path, PEM_BYTES)
    except OSError as error:
        remedy = "; run this as the user whose it is" if isinstance(error, PermissionError) else ""
        if isinstance(error, FileNotFoundError):  # Whether a person named it, or a directory should have it.
            remedy = "; put it there, or name one that is"
        raise KeyFileError(f"{path} cannot be read: {error.strerror}{remedy}") from error
    try:
        key = parsed_key(serialization.load_pem_private_key, pem, passphrase)
    except TypeError:
        copy = f"is encrypted: give a copy that is not (openssl pkey -in {path} -out COPY)"
        raise KeyFileError(f"{path} {copy if passphrase is None else 'is not encrypted: give no passphrase'}") from None
    except UNREADABLE_KEY:
        padded = padded_ec_key_in(pem) if passphrase is None else None
        if padded is None:
            raise KeyFileError(f"{path} is not a PEM private key, or the passphrase is wrong") from None
        return padded
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey):
        raise KeyFileError(f"{path} holds a {type(key).__name__}, where an EC, RSA or Ed25519 key is needed")
    return key


def is_encrypted(path: Path) -> bool:
    """Return whether *path* holds a private key that is encrypted, whole as far as can be told without a passphrase."""
    try:
        parsed_key(serialization.load_pem_private_key, contents_of(path, PEM_BYTES), None)
    except TypeError:
        return True
    except (OSError, *UNREADABLE_KEY):
        return False
    return False


def parsed_key(
    load: Callable[[bytes, bytes | None], PrivateKeyTypes], content: bytes, passphrase: bytes | None
) -> PrivateKeyTypes:
    """Return what *load*, the library's, makes of *content*; raise what that raises, and ValueError if it panics.

    A panic, as for a ``DEK-Info`` with a short vector, is no `Exception`: it would end any program.
    """
    try:
        return without_panic(load, content, passphrase)
    except GaveUp as error:
        raise ValueError(str(error)) from error


def key_identifier(public_key: CertificatePublicKeyTypes) -> bytes:
    """Return the key identifier of *public_key*: SHA-1 of its bits, 20 bytes (RFC 5280 §4.2.1.2 method 1)."""
    return x509.SubjectKeyIdentifier.from_public_key(public_key).digest


def spki_of(public_key: CertificatePublicKeyTypes) -> bytes:
    """Return the key's SubjectPublicKeyInfo in DER."""
    return public_key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def spki_fingerprint(public_key: CertificatePublicKeyTypes) -> bytes:
    """Return the SHA-256 of the key's SubjectPublicKeyInfo, 32 bytes."""
    return hashlib.sha256(spki_of(public_key)).digest()
