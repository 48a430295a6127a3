"""What is in a file that somebody else has made: certificates and private keys, in whatever form they are.

Handles: PEM with any number of certificates and keys, each beginning on a line of its own, and anything else between
them; DER; PKCS #7 in both, as Windows and ``openssl crl2pkcs7`` write chains; PKCS #12 (``.p12``, ``.pfx``, and what
keytool calls ``.jks``); keys as PKCS #8, SEC 1 or PKCS #1, plain or encrypted. Does not handle: older Java key stores,
keys in tokens.

Rules
-----
1. A key that cannot be used is no error here: whether anybody needs it, the caller knows (`CredentialFile.unusable`).
2. An error names the file and the remedy, never a key or a passphrase.
"""

from __future__ import annotations

import re
import warnings
from binascii import a2b_base64
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InternalError, InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.serialization import load_der_private_key, load_pem_private_key, pkcs7, pkcs12

from provisioning.pki.extension import UNREADABLE, UNUSABLE, check_readable
from provisioning.pki.keys import UNREADABLE_KEY, PrivateKey, parsed_key
from provisioning.pki.padded_key import padded_ec_key, padded_ec_key_in
from provisioning.program.given_file import PEM_BYTES, contents_of, unread

_LABELS = rb"(?:X509 )?CERTIFICATE|PKCS7|PKCS #7 SIGNED DATA|CMS|[A-Z0-9 ]*PRIVATE KEY"
_BEGIN = rb"^(?:\xef\xbb\xbf)?[ \t]*(-----BEGIN (" + _LABELS + rb")-----"
_BEGINS = re.compile(_BEGIN + rb")", re.MULTILINE)
_BLOCK = re.compile(_BEGIN + rb"([^-]*(?:-{1,4}[^-]+)*)-----END \2-----)", re.MULTILINE)
"""It ends at the next five hyphens, whatever they are: a large file without an end is read once, not for each block."""
_CERTIFICATE = {b"CERTIFICATE", b"X509 CERTIFICATE"}
_MESSAGE = {b"PKCS7", b"PKCS #7 SIGNED DATA", b"CMS"}
_SIGNED_DATA = bytes.fromhex("06092a864886f70d010702")
"""The content type of what carries certificates (RFC 5652 §5.1): it follows the outermost length."""
_HEAD = 24
_LOCKED = re.compile(rb"BEGIN ENCRYPTED|Proc-Type: 4,ENCRYPTED")
_PBES = bytes.fromhex("2a864886f70d0105")
"""Object identifiers of password-based encryption begin so (RFC 8018 appendix A)."""
_SEQUENCE = b"\x30"
_KEY_STORES = (b"\xfe\xed\xfe\xed", b"\xce\xce\xce\xce")
_KEY_STORE = (
    "a Java key store, which is not read: keytool -importkeystore -srckeystore FILE -destkeystore COPY.p12 "
    "-deststoretype pkcs12 converts it"
)
_KEYS = {".key", ".der", ".p8", ".pk8"}
_PKCS12 = {".p12", ".pfx"}
_PFX = re.compile(rb"\x30(?:[\x00-\x80]|\x81.|\x82..|\x83...|\x84....)\x02\x01\x03\x30", re.DOTALL)
"""It begins with its version, 3, and a sequence (RFC 7292 §4). No key does: their versions are 0 and 1."""
_ENCRYPTED = "is encrypted: give --passphrase-file"
_NOT_OPENED = "does not open with the passphrase in --passphrase-file, or is damaged"
_UNREADABLE = "holds a key that cannot be parsed: convert it (openssl pkey -in FILE -out COPY)"


class UnusableCredential(Exception):
    """A certificate or key cannot be taken into a fleet; the text names the file and says what to do."""


@dataclass(slots=True)
class CredentialFile:
    """The contents of one file. *unusable*: why a key in it cannot be used; *unread*: what it is, if it is not read."""

    path: Path
    certificates: list[x509.Certificate] = field(default_factory=list)
    keys: list[PrivateKey] = field(default_factory=list)
    unusable: str | None = None
    unread: str | None = None

    @classmethod
    def read(cls, path: Path, passphrase: bytes | None) -> CredentialFile:
        """Return what is in *path*. Raises `UnusableCredential`."""
        try:
            content = contents_of(path, PEM_BYTES)
        except OSError as error:
            raise UnusableCredential(unread(path, error)) from error
        found = cls(path)
        if content.startswith(_KEY_STORES):
            found.unread = _KEY_STORE
        elif path.suffix.lower() in _PKCS12 or _PFX.match(content):
            found._add_pkcs12(content, passphrase)
        elif content.startswith(_SEQUENCE):
            found._add_der(content, passphrase)
        else:
            found._add_pem(content, passphrase)
        return found

    def _add_pem(self, content: bytes, passphrase: bytes | None) -> None:
        blocks = list(_BLOCK.finditer(content))
        if len(blocks) < sum(1 for _ in _BEGINS.finditer(content)):
            raise UnusableCredential(f"{self.path} is not whole: a part of it has no end; copy it anew")
        for block in blocks:
            if block[2] in _CERTIFICATE:
                try:
                    self._add_certificate(x509.load_pem_x509_certificate(block[1]))
                except UNREADABLE as error:
                    if not self._has_added_message(block[3]):  # certutil calls everything a certificate.
                        raise self._damaged(error) from error
            elif block[2] in _MESSAGE:
                self._has_added_message(block[3])  # If not, it is some other message.
            else:
                self._add_key(block[1], passphrase, der=False)

    def _has_added_message(self, text: bytes) -> bool:
        """Whether *text*, of a block in PEM, is a message of PKCS #7 with certificates, which are added then."""
        try:
            content = a2b_base64(text)
        except ValueError:
            return False
        return self._has_added_pkcs7(content)

    def _has_added_pkcs7(self, content: bytes) -> bool:
        if _SIGNED_DATA not in content[:_HEAD]:
            return False
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # OpenSSL does not sort the set: no fault of the user.
                certificates = pkcs7.load_der_pkcs7_certificates(content)
        except UNUSABLE as error:
            raise self._damaged(error) from error
        for certificate in certificates:
            self._add_certificate(certificate)
        return True

    def _add_der(self, content: bytes, passphrase: bytes | None) -> None:
        try:
            certificate = x509.load_der_x509_certificate(content)
        except ValueError:  # Then it is a key, or something else altogether.
            if not self._has_added_pkcs7(content):
                self._add_key(content, passphrase, der=True)
        except UNREADABLE as error:
            raise self._damaged(error) from error
        else:
            self._add_certificate(certificate)

    def _add_pkcs12(self, content: bytes, passphrase: bytes | None) -> None:
        for tried in (passphrase, b""):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)  # Some write BER: no fault of the user.
                    bundle = pkcs12.load_pkcs12(content, tried)
            except ValueError:
                continue
            except (*UNUSABLE, InternalError) as error:
                why = "a key in it cannot be parsed" if isinstance(error, InternalError) else str(error)
                raise UnusableCredential(f"{self.path} cannot be opened ({why}): convert it to PEM") from error
            certificates = (bundle.cert, *bundle.additional_certs)
            for each in certificates:
                if each is not None:
                    self._add_certificate(each.certificate)
            if isinstance(bundle.key, PrivateKey):
                self.keys.append(bundle.key)
            elif bundle.key is not None:
                self.unusable = _of_no_use(bundle.key)
            return
        raise UnusableCredential(f"{self.path} {_ENCRYPTED if passphrase is None else _NOT_OPENED}")

    def _add_certificate(self, certificate: x509.Certificate) -> None:
        try:
            check_readable(certificate)
        except UNUSABLE as error:
            raise self._damaged(error) from error
        self.certificates.append(certificate)

    def _damaged(self, error: Exception) -> UnusableCredential:
        return UnusableCredential(f"{self.path} holds a certificate that cannot be parsed ({error}): copy it anew")

    def _add_key(self, content: bytes, passphrase: bytes | None, *, der: bool) -> None:
        # That the numbers of an RSA key belong together takes 36 ms to prove, and a signature, 0.6: `_is_whole`.
        load = partial(load_der_private_key if der else load_pem_private_key, unsafe_skip_rsa_key_validation=True)
        try:
            try:
                key = parsed_key(load, content, passphrase)
            except TypeError:
                if passphrase is None:
                    self.unusable = _ENCRYPTED
                    return
                key = parsed_key(load, content, None)  # It is not encrypted.
        except UNREADABLE_KEY:
            padded = padded_ec_key(content) if der else padded_ec_key_in(content)
            if padded is None:
                self._not_read(content, der=der)
                return
            key = padded
        if not isinstance(key, PrivateKey):
            self.unusable = _of_no_use(key)
        elif isinstance(key, rsa.RSAPrivateKey) and not _is_whole(key):
            self.unusable = "holds an RSA key whose numbers do not belong together: copy it anew"
        else:
            self.keys.append(key)

    def _not_read(self, content: bytes, *, der: bool) -> None:
        if der and self.path.suffix.lower() not in _KEYS:
            return  # Anything may begin with this octet.
        locked = _LOCKED.search(content) is not None or (der and _PBES in content)
        self.unusable = _NOT_OPENED if locked else _UNREADABLE


def _is_whole(key: rsa.RSAPrivateKey) -> bool:
    """Whether *key* signs what its own public key verifies."""
    padding, digest = PKCS1v15(), hashes.SHA256()
    try:
        key.public_key().verify(key.sign(b"", padding, digest), b"", padding, digest)
    except (InvalidSignature, ValueError):
        return False
    return True


def _of_no_use(key: object) -> str:
    return f"holds a {type(key).__name__}, where an EC, RSA or Ed25519 key is needed"
