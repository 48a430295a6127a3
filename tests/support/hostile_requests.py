"""Requests that no library would make: a corpus, and the pieces to make more of them.

Each is signed by its own key where possible: it is refused for its content. The harmless ones are certified, but
nothing they request is in the certificate.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from provisioning.ca.der import BIT_STRING, SEQUENCE, SET, element, integer, object_identifier
from provisioning.pki.keys import generate_key

NULL: Final = b"\x05\x00"
UTF8: Final = b"\x0c"
OCTETS: Final = b"\x04"
ATTRIBUTES: Final = b"\xa0"
COMMON_NAME: Final = object_identifier("2.5.4.3")
EXTENSION_REQUEST: Final = object_identifier("1.2.840.113549.1.9.14")
CHALLENGE_PASSWORD: Final = object_identifier("1.2.840.113549.1.9.7")
ECDSA_SHA256: Final = element(SEQUENCE, object_identifier("1.2.840.10045.4.3.2"))
EC_PUBLIC_KEY: Final = object_identifier("1.2.840.10045.2.1")
P256: Final = object_identifier("1.2.840.10045.3.1.7")
RSA: Final = element(SEQUENCE, object_identifier("1.2.840.113549.1.1.1") + NULL)


def common_name(value: bytes, tag: bytes = UTF8) -> bytes:
    """Return the AttributeTypeAndValue of a Common Name."""
    return element(SEQUENCE, COMMON_NAME + element(tag, value))


def subject_of(*relative_names: bytes) -> bytes:
    """Return a Name of RDNs, each the content of its SET."""
    return element(SEQUENCE, b"".join(element(SET, each) for each in relative_names))


def attribute(oid: bytes, *values: bytes) -> bytes:
    """Return a PKCS #10 attribute."""
    return element(SEQUENCE, oid + element(SET, b"".join(values)))


def extension(oid: str, value: bytes, *, critical: bool = False) -> bytes:
    """Return an Extension, whose *value* is put into its OCTET STRING."""
    mark = b"\x01\x01\xff" if critical else b""
    return element(SEQUENCE, object_identifier(oid) + mark + element(OCTETS, value))


def extensions(*each: bytes) -> bytes:
    """Return the attribute that requests extensions."""
    return attribute(EXTENSION_REQUEST, element(SEQUENCE, b"".join(each)))


def request(
    subject: bytes,
    attributes: bytes = b"",
    *,
    key: ec.EllipticCurvePrivateKey | None = None,
    spki: bytes | None = None,
    version: bytes = b"\x02\x01\x00",
    algorithm: bytes = ECDSA_SHA256,
    signature: bytes | None = None,
) -> bytes:
    """Return a request as DER, signed by *key* unless a *signature* is given."""
    key = key or generate_key()
    spki = spki or key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    info = element(SEQUENCE, version + subject + spki + element(ATTRIBUTES, attributes))
    if signature is None:
        signature = key.sign(info, ec.ECDSA(hashes.SHA256()))
    return element(SEQUENCE, info + algorithm + element(BIT_STRING, b"\x00" + signature))


def rsa_key(modulus: bytes, exponent: bytes) -> bytes:
    """Return the SubjectPublicKeyInfo of an RSA key whose two INTEGERs have this content."""
    numbers = element(SEQUENCE, element(b"\x02", modulus) + element(b"\x02", exponent))
    return element(SEQUENCE, RSA + element(BIT_STRING, b"\x00" + numbers))


def ec_key(point: bytes, parameters: bytes = P256, unused_bits: bytes = b"\x00") -> bytes:
    """Return the SubjectPublicKeyInfo of an EC key with this point and these parameters."""
    algorithm = element(SEQUENCE, EC_PUBLIC_KEY + parameters)
    return element(SEQUENCE, algorithm + element(BIT_STRING, unused_bits + point))


Case = tuple[str, Callable[[str], bytes]]
"""A description, and a function from a device's name to the request."""


def refused() -> Iterator[Case]:
    """Yield requests that must be refused."""
    ten_k = b"a" * 10_000
    large = (1 << 2048) - 1

    def named(*values: tuple[bytes, bytes]) -> Callable[[str], bytes]:
        return lambda _name: request(subject_of(*(common_name(value, tag) for tag, value in values)))

    def keyed(spki: bytes) -> Callable[[str], bytes]:
        return lambda name: request(subject_of(common_name(name.encode())), spki=spki)

    def asking(attributes: bytes) -> Callable[[str], bytes]:
        return lambda name: request(subject_of(common_name(name.encode())), attributes)

    def signed(**how: bytes) -> Callable[[str], bytes]:
        return lambda name: request(subject_of(common_name(name.encode())), **how)  # type: ignore[arg-type]

    yield "no subject", lambda _name: request(subject_of())
    yield "an RDN of nothing", lambda _name: request(subject_of(b""))
    yield (
        "two Common Names in one RDN",
        lambda name: request(subject_of(common_name(name.encode()) + common_name(b"b"))),
    )
    yield "five hundred RDNs", lambda name: request(subject_of(*[common_name(name.encode())] * 500))
    yield "empty Common Name", named((UTF8, b""))
    yield "NUL in the Common Name", named((UTF8, b"admin\x00.evil"))
    yield "line end in the Common Name", named((UTF8, b"a\nlevel=error"))
    yield "terminal escape in the Common Name", named((UTF8, b"a\x1b[2Jb"))
    yield "no UTF-8", named((UTF8, b"\xff\xfe\xfa"))
    yield "ten thousand letters", named((UTF8, ten_k))
    yield "BMPString of odd length", named((b"\x1e", b"\x00a\x00"))
    yield "UniversalString", named((b"\x1c", b"\x00\x00\x00a\x00"))
    yield "a number as Common Name", named((b"\x02", b"\x01"))
    yield "a path as Common Name", named((UTF8, b"../../operator/admin"))
    yield "SQL as Common Name", named((UTF8, b"x'; DROP TABLE devices; --"))
    yield "subject that is no Name", lambda _name: request(b"\x02\x01\x05")

    yield "RSA modulus 0", keyed(rsa_key(b"\x00", b"\x01\x00\x01"))
    yield "RSA modulus negative", keyed(rsa_key(b"\xff" * 256, b"\x01\x00\x01"))
    yield "RSA modulus even", keyed(rsa_key((large - 1).to_bytes(257), b"\x01\x00\x01"))
    yield "RSA exponent 1", keyed(rsa_key(large.to_bytes(257), b"\x01"))
    yield "RSA exponent larger than the modulus", keyed(rsa_key(large.to_bytes(257), b"\x01" + b"\x00" * 300))
    yield "RSA of 65,536 bits", keyed(rsa_key(b"\x00" + b"\xff" * 8192, b"\x01\x00\x01"))
    yield "EC point at infinity", keyed(ec_key(b"\x00"))
    yield "EC point that is not on the curve", keyed(ec_key(b"\x04" + b"\x01" * 64))
    yield "EC point of no length", keyed(ec_key(b""))
    yield "EC curve by explicit parameters", keyed(ec_key(b"\x04" + b"\x01" * 64, element(SEQUENCE, integer(1))))
    yield "EC without a curve", keyed(ec_key(b"\x04" + b"\x01" * 64, b""))
    yield "EC with nine unused bits", keyed(ec_key(b"\x04" + b"\x01" * 64, unused_bits=b"\x09"))
    yield (
        "key of an unknown kind",
        keyed(element(SEQUENCE, element(SEQUENCE, object_identifier("1.2.3.4")) + element(BIT_STRING, b"\x00\x01"))),
    )

    yield "empty signature", signed(signature=b"")
    yield "signature r = s = 0", signed(signature=element(SEQUENCE, integer(0) + integer(0)))
    yield "signature of ten thousand bytes", signed(signature=ten_k)
    yield (
        "signature algorithm of another kind",
        signed(algorithm=element(SEQUENCE, object_identifier("1.2.840.113549.1.1.11") + NULL)),
    )
    yield "signature by MD5", signed(algorithm=element(SEQUENCE, object_identifier("1.2.840.113549.1.1.4") + NULL))
    yield "signature algorithm unknown", signed(algorithm=element(SEQUENCE, object_identifier("1.2.3.4.5")))
    yield "version 2", signed(version=b"\x02\x01\x02")
    yield "version of a thousand bytes", signed(version=element(b"\x02", b"\x7f" * 1000))

    yield "extensions that are none", asking(attribute(EXTENSION_REQUEST, element(SEQUENCE, b"\x02\x01\x05")))
    yield "one extension twice", asking(extensions(*[extension("2.5.29.17", b"\x30\x03\x82\x01a")] * 2))
    yield "alternative names that are none", asking(extensions(extension("2.5.29.17", b"\x30\x82\xff\xff")))

    yield "thousands of nested sequences", lambda _name: _nested(12_000)
    yield (
        "indefinite length",
        lambda name: b"\x30\x80" + request(subject_of(common_name(name.encode())))[4:] + b"\x00\x00",
    )
    yield "length of four gigabytes", lambda _name: b"\x30\x84\xff\xff\xff\xf0" + b"\x30" * 100
    yield "length of 126 octets", lambda _name: b"\x30\xfe" + b"\x01" * 126
    yield "tag of many octets", lambda _name: b"\x3f" + b"\xff" * 200


def harmless() -> Iterator[Case]:
    """Yield requests that may be certified: nothing they ask for is granted."""

    def asking(attributes: bytes) -> Callable[[str], bytes]:
        return lambda name: request(subject_of(common_name(name.encode())), attributes)

    def named(kind: bytes, name: bytes) -> bytes:
        return extensions(extension("2.5.29.17", element(SEQUENCE, element(kind, name))))

    yield "wants to be a CA", asking(extensions(extension("2.5.29.19", b"\x30\x03\x01\x01\xff", critical=True)))
    yield (
        "wants every usage",
        asking(
            extensions(
                extension("2.5.29.15", b"\x03\x02\x00\xff", critical=True),
                extension("2.5.29.37", element(SEQUENCE, object_identifier("2.5.29.37.0"))),
            )
        ),
    )
    yield (
        "wants an unknown critical extension",
        asking(extensions(extension("1.2.3.4.5.6", b"\x30\x00", critical=True))),
    )
    yield "wants another's key identifier", asking(extensions(extension("2.5.29.14", element(OCTETS, b"a" * 20))))
    yield "wants another's identity", asking(named(b"\x86", b"spiffe://fleet.internal/operator/admin"))
    yield "wants a server's name", asking(named(b"\x82", b"localhost"))
    yield "wants a server's address", asking(named(b"\x87", b"\x7f\x00\x00\x01"))
    yield "has an attribute of nobody's", asking(attribute(object_identifier("1.2.3.4.5"), element(UTF8, b"hello")))
    yield "has a compressed point", _compressed


def _compressed(name: str) -> bytes:
    key = generate_key()
    point = key.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    return request(subject_of(common_name(name.encode())), key=key, spki=ec_key(point))


def _nested(size: int) -> bytes:
    """Return nested sequences, *size* bytes in total."""
    encoded = NULL
    while len(encoded) < size:
        encoded = element(SEQUENCE, encoded)
    return encoded


def body(der: bytes) -> bytes:
    """Return the body to post."""
    return base64.encodebytes(der)
