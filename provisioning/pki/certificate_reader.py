"""Reads from a certificate's DER what admission must know.

Theory
------
The certificates of a fleet are made from few templates: issuer, algorithms and most extensions are the same bytes in
all of them, and only serial number, validity, name, key, identity and subject key identifier differ. So the library
(`cryptography`) parses one whole certificate of each template, and the result for the common bytes is remembered under
exactly these bytes; of the next certificate only the parts that differ are read, by their offsets in the DER. A full
parse costs 55 µs in a handshake's cold caches, a tenth of the whole handshake; this costs 15. And most devices that
connect have connected before: the result for the whole certificate is remembered too.

The slow reference is `facts_of` on the parsed certificate; tests/properties/test_certificate_reader_properties.py
checks that both give the same answers and the same refusals.

Hot: `CertificateReader.recall`, once per connection. Measured by `benchmarks/side_by_side.py --only connections`.

Rules
-----
1. Only for a certificate whose path OpenSSL has verified: signature and key are not checked.
2. Whatever differs from the usual format, even in a byte, goes to the library, whose answer or error then counts.
   Nothing is repaired or skipped unseen: bytes that are not read here were read by the library before. OpenSSL accepts
   more than the library does, and a certificate may not be admitted or refused by what was read before it.
3. Bounded: a limited number of templates and of certificates, 1 KB each, is remembered. The oldest certificate goes
   first; the templates go all at once.
4. What a certificate says is remembered, never whether it is good.

Handles: one common name, one identity URI, validity before 2050. The library handles the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from cryptography import x509

from provisioning.pki.extension import extension
from provisioning.pki.identity import SCHEME, Identity, identity_of, parse_uri
from provisioning.pki.revocation import CertificateKey, certificate_key

_MOST_TEMPLATES = 1024
_MOST_CERTIFICATES = 16_384
_SEQUENCE: Final = 0x30
_SET: Final = 0x31
_INTEGER: Final = 0x02
_UTC_TIME: Final = 0x17
_PRINTABLE_STRING: Final = 0x13
_STRINGS: Final = (0x0C, _PRINTABLE_STRING)  # The first is UTF8String.
_VERSION_3: Final = b"\xa0\x03\x02\x01\x02"
_COMMON_NAME: Final = b"\x06\x03\x55\x04\x03"
_EXTENSIONS: Final = 0xA3
_URI: Final = 0x86
_SCHEME: Final = SCHEME.encode()
_ZULU: Final = 0x5A
_ALTERNATIVE_NAME: Final = b"\x06\x03\x55\x1d\x11"
_SUBJECT_KEY_ID: Final = b"\x06\x03\x55\x1d\x0e"
_CRITICAL: Final = b"\x01\x01\xff"
_BIT_STRING: Final = 0x03
_OCTET_STRING: Final = 0x04
_SUBJECT_KEY: Final = b"\x30\x1d\x06\x03\x55\x1d\x0e\x04\x16\x04\x14"
"""A subject key identifier extension, up to its twenty bytes (RFC 5280 §4.2.1.2)."""
_SUBJECT_KEY_SIZE: Final = len(_SUBJECT_KEY) + 20


@dataclass(slots=True, init=False)
class CertificateFacts:
    """Whom a certificate names, its own key in the revocation index, and its validity (UTC). Immutable."""

    identity: Identity
    key: CertificateKey
    not_before: datetime
    not_after: datetime
    may_certify: bool
    """Whether it is a CA's: it may sign others, whatever its other purposes."""

    def __init__(  # Written out for mypyc to compile.
        self, identity: Identity, key: CertificateKey, not_before: datetime, not_after: datetime, may_certify: bool
    ) -> None:
        self.identity = identity
        self.key = key
        self.not_before = not_before
        self.not_after = not_after
        self.may_certify = may_certify


def facts_of(
    certificate: x509.Certificate, identify: Callable[[x509.Certificate], Identity] = identity_of
) -> CertificateFacts:
    """Return what *certificate* says; *identify* returns whom it names. The slow, obvious reference.

    Raises `InvalidIdentity`, and what parsing a certificate raises, `provisioning.pki.extension.UNREADABLE`.
    """
    return CertificateFacts(
        identify(certificate),
        certificate_key(certificate),
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
        may_certify(certificate),
    )


def may_certify(certificate: x509.Certificate) -> bool:
    """Return whether *certificate* may sign others."""
    constraints = extension(certificate, x509.BasicConstraints)
    usage = extension(certificate, x509.KeyUsage)
    return (constraints is not None and constraints.ca) or (usage is not None and usage.key_cert_sign)


class _Unusual(Exception):
    """Not the format that is read here."""


class CertificateReader:
    """Reads certificates, and remembers what those of one template have in common."""

    __slots__ = ("_certificates", "_templates")

    def __init__(self) -> None:
        self._templates: dict[bytes, tuple[bytes, bool]] = {}
        self._certificates: dict[bytes, CertificateFacts] = {}

    def __len__(self) -> int:
        """Return how many templates are remembered."""
        return len(self._templates)

    def read(self, der: bytes) -> CertificateFacts:
        """Return what the certificate in *der* says. Raises like `facts_of`."""
        try:
            return self._read(der)
        except _Unusual:
            return facts_of(x509.load_der_x509_certificate(der))

    def recall(self, der: bytes) -> CertificateFacts:
        """Return what `read` does, from memory if the certificate is known. Raises like `facts_of`."""
        facts = self._certificates.get(der)
        if facts is None:
            facts = self.read(der)
            if len(self._certificates) >= _MOST_CERTIFICATES:
                del self._certificates[next(iter(self._certificates))]
            self._certificates[der] = facts
        return facts

    def _read(self, der: bytes) -> CertificateFacts:
        outer, end = _element(der, 0, len(der), _SEQUENCE)
        if end != len(der):
            raise _Unusual
        body, end = _element(der, outer, end, _SEQUENCE)
        if der[body : body + 5] != _VERSION_3:
            raise _Unusual
        at, after_serial = _element(der, body + 5, end, _INTEGER)
        serial = _serial(der[at:after_serial])
        _, at = _element(der, after_serial, end, _SEQUENCE)  # The signature's algorithm.
        _, validity = _element(der, at, end, _SEQUENCE)  # The issuer.
        at, subject = _element(der, validity, end, _SEQUENCE)
        begins, until = _element(der, at, subject, _UTC_TIME)
        ends, stop = _element(der, until, subject, _UTC_TIME)
        if stop != subject:
            raise _Unusual
        not_before, not_after = _time(der[begins:until]), _time(der[ends:stop])
        at, key = _element(der, subject, end, _SEQUENCE)
        name = _common_name(der, at, key)
        kind, at = _key_of(der, key, end)
        at, stop = _element(der, at, end, _EXTENSIONS)
        if stop != end:
            raise _Unusual
        uri, common = _extensions(der, at, end, der[after_serial:validity] + kind)
        template = self._templates.get(common)
        if template is None:
            facts = facts_of(x509.load_der_x509_certificate(der))
            if len(self._templates) >= _MOST_TEMPLATES:
                self._templates.clear()
            self._templates[common] = (facts.key[0], facts.may_certify)
            return facts
        identity = parse_uri(uri)
        if identity.name.encode() != name:
            raise _Unusual  # Refused, with the slow reference's message.
        return CertificateFacts(identity, (template[0], serial), not_before, not_after, template[1])


def _element(der: bytes, at: int, limit: int, tag: int) -> tuple[int, int]:
    """Return where the content of the element at *at* begins and ends; *limit* is the end of what it is in."""
    if at + 2 > limit or der[at] != tag:
        raise _Unusual
    length = der[at + 1]
    start = at + 2
    if length > 127:
        if length == 0x81 and start < limit:
            length = der[start]
            start += 1
            if length < 128:  # DER has one way to write a length.
                raise _Unusual
        elif length == 0x82 and start + 1 < limit:
            length = der[start] << 8 | der[start + 1]
            start += 2
            if length < 256:
                raise _Unusual
        else:
            raise _Unusual
    end = start + length
    if end > limit:
        raise _Unusual
    return start, end


def _serial(content: bytes) -> int:
    if not 0 < len(content) <= 20 or content[0] > 127:
        raise _Unusual
    if content[0] == 0 and (len(content) == 1 or content[1] < 128):
        raise _Unusual
    return int.from_bytes(content, "big")


def _time(text: bytes) -> datetime:
    """Return a UTCTime (RFC 5280 §4.1.2.5.1) of this half of the century."""
    if len(text) != 13 or text[12] != _ZULU or not text[:12].isdigit() or text[0] > 0x34:
        raise _Unusual
    try:
        return datetime(
            2000 + _two_digits(text, 0),
            _two_digits(text, 2),
            _two_digits(text, 4),
            _two_digits(text, 6),
            _two_digits(text, 8),
            _two_digits(text, 10),
            0,
            UTC,
        )
    except ValueError:
        raise _Unusual from None


def _two_digits(text: bytes, at: int) -> int:
    return text[at] * 10 + text[at + 1] - 11 * 0x30  # Six calls of `int` cost more than the date itself.


def _common_name(der: bytes, at: int, end: int) -> bytes:
    """Return the subject's only common name."""
    at, stop = _element(der, at, end, _SET)
    if stop != end:
        raise _Unusual
    at, stop = _element(der, at, stop, _SEQUENCE)
    if stop != end or der[at : at + 5] != _COMMON_NAME:
        raise _Unusual
    at += 5
    if at >= end or der[at] not in _STRINGS:
        raise _Unusual
    is_printable = der[at] == _PRINTABLE_STRING
    start, stop = _element(der, at, end, der[at])
    if stop != end or (is_printable and b"_" in der[start:stop]):  # The one character of names that those have not.
        raise _Unusual
    return der[start:stop]


def _key_of(der: bytes, at: int, end: int) -> tuple[bytes, int]:
    """Return what kind of key the public key at *at* is, and where it ends; OpenSSL has used its bits."""
    at, stop = _element(der, at, end, _SEQUENCE)
    _, bits = _element(der, at, stop, _SEQUENCE)
    start, after = _element(der, bits, stop, _BIT_STRING)
    if after != stop or start == after or der[start]:
        raise _Unusual
    return der[at:bits], stop


def _extensions(der: bytes, at: int, end: int, before: bytes) -> tuple[str, bytes]:
    """Return the identity URI, and *before* with all extensions that a template's certificates have in common."""
    at, stop = _element(der, at, end, _SEQUENCE)
    if stop != end:
        raise _Unusual
    uri: str | None = None
    has_key_id = False
    common = [before]
    while at < end:
        content, following = _element(der, at, end, _SEQUENCE)
        if der[content : content + 5] == _ALTERNATIVE_NAME:
            if uri is not None:
                raise _Unusual
            uri = _only_uri(der, content + 5, following)
        elif following - at == _SUBJECT_KEY_SIZE and der[at : at + len(_SUBJECT_KEY)] == _SUBJECT_KEY:
            if has_key_id:
                raise _Unusual
            has_key_id = True
        elif der[content : content + 5] == _SUBJECT_KEY_ID:  # In another form: beside the usual one it is one too many.
            raise _Unusual
        else:
            common.append(der[at:following])
        at = following
    if uri is None:
        raise _Unusual
    return uri, b"".join(common)


def _only_uri(der: bytes, at: int, end: int) -> str:
    """Return the URI of a Subject Alternative Name that contains nothing else."""
    if der[at : at + 3] == _CRITICAL:
        at += 3
    at, stop = _element(der, at, end, _OCTET_STRING)
    if stop != end:
        raise _Unusual
    at, stop = _element(der, at, end, _SEQUENCE)
    if stop != end:
        raise _Unusual
    at, stop = _element(der, at, end, _URI)
    if stop != end:
        raise _Unusual
    if der[at : at + len(_SCHEME)] != _SCHEME:
        raise _Unusual  # Not an identity: refused, with the slow reference's message.
    try:
        return der[at:stop].decode("ascii")
    except UnicodeDecodeError:
        raise _Unusual from None
