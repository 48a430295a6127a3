"""Certificates that no library will make: taken apart, changed in one place, signed again.

`cryptography` rightly refuses to issue a serial number of zero or a SHA-1 signature, and `ssl` to load a certificate
with a foreign key. An attacker has no such scruples. X.509 is DER, and DER is tag, length, value; this module does just
that.

    Certificate ::= SEQUENCE { tbsCertificate, signatureAlgorithm, signatureValue BIT STRING }
    TBSCertificate ::= SEQUENCE { [0] version, serialNumber INTEGER, signature AlgorithmIdentifier, issuer, ... }
"""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from provisioning.pki.keys import PrivateKey, generate_key
from provisioning.pki.pem import armoured

_SEQUENCE = 0x30
_INTEGER = 0x02
_BIT_STRING = 0x03
_OCTET_STRING = 0x04
_OBJECT_IDENTIFIER = 0x06
_LONG = 0x80
_ECDSA_WITH_SHA1 = bytes.fromhex("300906072a8648ce3d0401")
_RSA_WITH_SHA1 = bytes.fromhex("300d06092a864886f70d0101050500")


def element(tag: int, content: bytes) -> bytes:
    """Return one DER element."""
    size = len(content)
    if size < _LONG:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8)
    return bytes((tag, _LONG | len(length))) + length + content


def elements(data: bytes) -> list[bytes]:
    """Return the complete DER elements of *data*."""
    found, position = [], 0
    while position < len(data):
        end = position + _header(data, position) + _length(data, position)
        found.append(data[position:end])
        position = end
    return found


def content(data: bytes) -> bytes:
    """Return the content of the single DER element *data*."""
    return data[_header(data, 0) :]


def with_serial(certificate: x509.Certificate, serial: bytes, key: PrivateKey) -> bytes:
    """Return *certificate* with the content octets *serial* as its serial number, signed again by *key*."""
    tbs, algorithm, _ = elements(content(certificate.public_bytes(Encoding.DER)))
    parts = elements(content(tbs))
    parts[1] = element(_INTEGER, serial)
    return _signed(element(_SEQUENCE, b"".join(parts)), algorithm, key, hashes.SHA256())


def with_extension(
    certificate: x509.Certificate, extension: x509.Extension[x509.ExtensionType], key: PrivateKey
) -> bytes:
    """Return *certificate* with *extension* behind its others, also if it has one of that kind; signed again by *key*.

    RFC 5280 §4.2: a certificate must not have two of a kind.
    """
    tbs, algorithm, _ = elements(content(certificate.public_bytes(Encoding.DER)))
    *parts, extensions = elements(content(tbs))
    critical = b"\x01\x01\xff" if extension.critical else b""
    value = element(_OCTET_STRING, extension.value.public_bytes())
    one = element(_SEQUENCE, _oid(extension.oid) + critical + value)
    parts.append(element(extensions[0], element(_SEQUENCE, content(content(extensions)) + one)))
    return _signed(element(_SEQUENCE, b"".join(parts)), algorithm, key, hashes.SHA256())


def _oid(oid: x509.ObjectIdentifier) -> bytes:
    """Return *oid* in DER."""
    first, second, *arcs = map(int, oid.dotted_string.split("."))
    octets = bytearray()
    for arc in (40 * first + second, *arcs):
        groups = [arc & 0x7F]
        while arc := arc >> 7:
            groups.append(arc & 0x7F | _LONG)
        octets += bytes(reversed(groups))
    return element(_OBJECT_IDENTIFIER, bytes(octets))


def with_sha1(certificate: x509.Certificate, key: PrivateKey) -> bytes:
    """Return *certificate* signed again by *key* with SHA-1."""
    tbs, _, _ = elements(content(certificate.public_bytes(Encoding.DER)))
    algorithm = _ECDSA_WITH_SHA1 if isinstance(key, ec.EllipticCurvePrivateKey) else _RSA_WITH_SHA1
    parts = elements(content(tbs))
    parts[2] = algorithm
    return _signed(element(_SEQUENCE, b"".join(parts)), algorithm, key, hashes.SHA1())  # noqa: S303 - the attack


def request_over_sha1(request: x509.CertificateSigningRequest, key: PrivateKey) -> bytes:
    """Return *request* signed again by *key* with SHA-1."""
    info, _, _ = elements(content(request.public_bytes(Encoding.DER)))
    algorithm = _ECDSA_WITH_SHA1 if isinstance(key, ec.EllipticCurvePrivateKey) else _RSA_WITH_SHA1
    return _signed(info, algorithm, key, hashes.SHA1())  # noqa: S303 - the attack


def with_broken_signature(certificate: x509.Certificate) -> bytes:
    """Return *certificate* with one bit of its signature changed, still well-formed."""
    der = bytearray(certificate.public_bytes(Encoding.DER))
    der[-1] ^= 1
    return bytes(der)


def with_other_name(certificate: x509.Certificate, name: str, other: str) -> bytes:
    """Return *certificate* with *name* replaced by *other*, of the same length; the signature still covers *name*."""
    if len(name) != len(other):
        raise ValueError("names of different lengths would need other lengths around them")
    return certificate.public_bytes(Encoding.DER).replace(name.encode(), other.encode())


def key_pretending_to_be(certificate: x509.Certificate) -> bytes:
    """Return a new private key (PEM) that claims the public key of *certificate*.

    RFC 5915 lets a private key include its public key, and OpenSSL trusts that: the pair passes the consistency check,
    but signatures are made with a different key.
    """
    thief = generate_key()
    der = thief.private_bytes(Encoding.DER, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    forged = der.replace(_point(thief.public_key()), _point(certificate.public_key()))
    return armoured("EC PRIVATE KEY", forged)


def _point(key: object) -> bytes:
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise TypeError("only an elliptic-curve key carries its public key beside it")
    return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def pem(der: bytes) -> bytes:
    """Return the certificate *der* as PEM."""
    return armoured("CERTIFICATE", der)


def _signed(tbs: bytes, algorithm: bytes, key: PrivateKey, hash_algorithm: hashes.HashAlgorithm) -> bytes:
    match key:
        case ec.EllipticCurvePrivateKey():
            signature = key.sign(tbs, ec.ECDSA(hash_algorithm))
        case rsa.RSAPrivateKey():
            signature = key.sign(tbs, padding.PKCS1v15(), hash_algorithm)
        case ed25519.Ed25519PrivateKey():
            signature = key.sign(tbs)
    return element(_SEQUENCE, tbs + algorithm + element(_BIT_STRING, b"\0" + signature))


def _header(data: bytes, position: int) -> int:
    length = data[position + 1]
    return 2 if length < _LONG else 2 + (length & 0x7F)


def _length(data: bytes, position: int) -> int:
    length = data[position + 1]
    if length < _LONG:
        return length
    return int.from_bytes(data[position + 2 : position + 2 + (length & 0x7F)])
