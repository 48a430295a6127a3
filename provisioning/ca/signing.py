"""How a CA's key signs: exactly the bytes that were checked.

The fields are encoded once and checked; then these very bytes are signed. So nothing can
differ between what was checked and what is signed.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.serialization import Encoding

from provisioning.ca import der
from provisioning.pki.keys import PrivateKey

_TRIAL: Final = b"Fleetgate: a signature to see whether this key signs. No DER.".ljust(64)
"""It cannot be taken for a certificate, CRL or OCSP response (RFC 5280, RFC 6960): each of those begins a SEQUENCE."""


def hash_for(key: PrivateKey) -> hashes.SHA256 | hashes.SHA384 | None:
    """Return the hash to sign with: as strong as the key, and None for Ed25519, which has its own."""
    match key:
        case ed25519.Ed25519PrivateKey():
            return None
        case ec.EllipticCurvePrivateKey(curve=ec.SECP384R1()):
            return hashes.SHA384()
        case _:
            return hashes.SHA256()


def throw_away_twin(key: PrivateKey) -> PrivateKey:
    """Return an untrusted key of the same type, whose signatures have the same algorithm identifier."""
    match key:
        case ec.EllipticCurvePrivateKey():
            return ec.generate_private_key(key.curve)
        case rsa.RSAPrivateKey():
            return _rsa_twin()
        case ed25519.Ed25519PrivateKey():
            return ed25519.Ed25519PrivateKey.generate()


@functools.cache
def _rsa_twin() -> rsa.RSAPrivateKey:
    """Return this process's twin, which takes a tenth of a second to make.

    It has 2048 bits, whatever the key's size: the algorithm identifier does not name the size.
    """
    return rsa.generate_private_key(65537, 2048)


def signed(key: PrivateKey, fields: Sequence[bytes], place: int) -> bytes:
    """Return the CRL with these *fields*, in DER; they may be in pieces, which are copied once.

    *place* is the index of the signature algorithm among the fields; inner and outer are equal (RFC 5280 §5.1.1.2).
    """
    size = sum(map(len, fields))
    signed_fields = [der.head(der.SEQUENCE, size), *fields]
    end = fields[place] + der.element(der.BIT_STRING, b"\x00" + signature_of_pieces(key, signed_fields))
    return b"".join([der.head(der.SEQUENCE, len(signed_fields[0]) + size + len(end)), *signed_fields, end])


def with_signature(fields: bytes, algorithm: bytes, signature: bytes) -> bytes:
    """Return the same with an existing *signature*, made with the *algorithm* that is among the fields."""
    return der.element(der.SEQUENCE, fields + algorithm + der.element(der.BIT_STRING, b"\x00" + signature))


def signature_algorithm(key: PrivateKey) -> bytes:
    """Return the AlgorithmIdentifier of *key*'s signatures in DER, as the library writes it."""
    twin = throw_away_twin(key)
    nobody = x509.Name([])
    moment = datetime(2000, 1, 1, tzinfo=UTC)
    example = x509.CertificateRevocationListBuilder(nobody, moment, moment).sign(twin, hash_for(twin))
    return list(der.children(example.public_bytes(Encoding.DER)))[1]


def signature_of_pieces(key: PrivateKey, pieces: Sequence[bytes]) -> bytes:
    """Return the signature of the concatenated *pieces*.

    They are hashed first, by a library that releases the GIL meanwhile: 5 MB take milliseconds.
    Ed25519 needs the whole at once.
    """
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign(b"".join(pieces))
    hashed = _hash(key)
    digest = hashlib.new(hashed.name)
    for piece in pieces:
        digest.update(piece)
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(digest.digest(), padding.PKCS1v15(), Prehashed(hashed))
    return key.sign(digest.digest(), ec.ECDSA(Prehashed(hashed)))


def signer(key: PrivateKey) -> Callable[[bytes], bytes]:
    """Return the function that signs with *key*, so that the key's type is determined only once."""
    match key:
        case ec.EllipticCurvePrivateKey():
            algorithm = ec.ECDSA(_hash(key))
            return lambda fields: key.sign(fields, algorithm)
        case rsa.RSAPrivateKey():
            hashed = _hash(key)
            return lambda fields: key.sign(fields, padding.PKCS1v15(), hashed)
        case ed25519.Ed25519PrivateKey():
            return key.sign


def try_key(key: PrivateKey) -> None:
    """Make a trial signature with *key*; raise InvalidSignature if it does not verify, or the token's error."""
    signature = signer(key)(_TRIAL)
    match key:
        case ec.EllipticCurvePrivateKey():
            key.public_key().verify(signature, _TRIAL, ec.ECDSA(_hash(key)))
        case rsa.RSAPrivateKey():
            key.public_key().verify(signature, _TRIAL, padding.PKCS1v15(), _hash(key))
        case ed25519.Ed25519PrivateKey():
            key.public_key().verify(signature, _TRIAL)


def _hash(key: PrivateKey) -> hashes.SHA256 | hashes.SHA384:
    found = hash_for(key)
    if found is None:
        raise AssertionError("only Ed25519 brings its own hash")
    return found
