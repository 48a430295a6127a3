"""The reader that remembers templates says of every certificate what the library says, or refuses it in its words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID
from hypothesis import example, given
from hypothesis import strategies as st

from provisioning.ca.der import OCTET_STRING, SEQUENCE, children, content, element
from provisioning.pki import certificate_reader
from provisioning.pki.certificate_reader import CertificateFacts, CertificateReader, facts_of
from provisioning.pki.extension import UNREADABLE
from provisioning.pki.keys import generate_key
from tests.support.pki import shared_device, shared_pki

ISSUER_KEY, KEY = generate_key(), generate_key()
_EXTENSION_IDS = [
    *(ExtensionOID.BASIC_CONSTRAINTS, ExtensionOID.KEY_USAGE, ExtensionOID.AUTHORITY_KEY_IDENTIFIER),
    *(ExtensionOID.SUBJECT_KEY_IDENTIFIER, ExtensionOID.CRL_DISTRIBUTION_POINTS, ExtensionOID.EXTENDED_KEY_USAGE),
    x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"),
]

names = st.sampled_from(["meter-1", "meter-2", "m", "a" * 64, "-bad", "müller", "x_y.z"])
uris = st.one_of(
    st.builds("spiffe://fleet.internal/device/meters/{}".format, names.filter(str.isascii)),
    st.sampled_from(
        [
            "spiffe://fleet.internal/service/backend",
            "spiffe://fleet.internal/nobody/x",
            "https://example.org/meter-1",
            "spiffe://Fleet/device/g/meter-1",
            "urn:x",
        ]
    ),
)
strings = st.sampled_from([_ASN1Type.UTF8String, _ASN1Type.PrintableString, _ASN1Type.BMPString])
attributes = st.one_of(
    st.builds(
        lambda name, kind: x509.NameAttribute(NameOID.COMMON_NAME, name, kind),
        names.filter(lambda name: name.isascii() and "_" not in name),  # What a PrintableString may hold.
        strings,
    ),
    st.builds(lambda name: x509.NameAttribute(NameOID.COMMON_NAME, name), names),
    st.just(x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Example")),
)
general_names = st.lists(
    st.one_of(uris.map(x509.UniformResourceIdentifier), st.just(x509.DNSName("meter-1.example.org"))), max_size=2
)
usages = st.booleans().map(
    lambda signs: x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
)
extension_values: st.SearchStrategy[x509.ExtensionType] = st.one_of(
    st.booleans().map(lambda ca: x509.BasicConstraints(ca=ca, path_length=None)),
    usages,
    st.just(x509.AuthorityKeyIdentifier.from_issuer_public_key(ISSUER_KEY.public_key())),
    st.just(x509.SubjectKeyIdentifier.from_public_key(KEY.public_key())),
    st.binary(max_size=24).map(x509.SubjectKeyIdentifier),
    st.just(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])),
    st.builds(x509.UnrecognizedExtension, st.sampled_from(_EXTENSION_IDS), st.binary(max_size=12)),
)
moments = st.datetimes(datetime(1960, 1, 1), datetime(2070, 1, 1)).map(lambda moment: moment.replace(microsecond=0))  # noqa: DTZ001


@st.composite
def certificates(draw: st.DrawFn) -> bytes:
    """Draw a certificate, mostly of a usual shape, signed by `ISSUER_KEY`."""
    name = draw(names.filter(str.isascii))
    usual = draw(st.booleans())
    subject = [x509.NameAttribute(NameOID.COMMON_NAME, name)] if usual else draw(st.lists(attributes, max_size=2))
    alternative: list[Any] = draw(general_names)
    if usual and not name.startswith("-"):
        alternative = [x509.UniformResourceIdentifier(f"spiffe://fleet.internal/device/meters/{name}")]
    begin, end = sorted((draw(moments), draw(moments)))
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(subject))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, draw(st.sampled_from(["CA", "CB"])))]))
        .public_key(KEY.public_key())
        .serial_number(draw(st.integers(1, 2**159 - 1) | st.integers(1, 300)))
        .not_valid_before(begin)
        .not_valid_after(end)
    )
    for each in draw(st.lists(extension_values, max_size=4, unique_by=lambda value: value.oid.dotted_string)):
        builder = builder.add_extension(each, critical=draw(st.booleans()))
    if alternative:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternative), critical=draw(st.booleans()))
    return builder.sign(ISSUER_KEY, hashes.SHA256()).public_bytes(Encoding.DER)


def outcome(read: Callable[[bytes], CertificateFacts], der: bytes) -> CertificateFacts | tuple[type, str]:
    try:
        return read(der)
    except UNREADABLE as error:
        return type(error), str(error)


def slowly(der: bytes) -> CertificateFacts:
    return facts_of(x509.load_der_x509_certificate(der))


@given(st.lists(certificates(), min_size=1, max_size=4))
def test_the_reader_says_what_the_library_says_whatever_it_has_read_before(read: list[bytes]) -> None:
    reader, remembering = CertificateReader(), CertificateReader()
    for der in (*read, *read):
        assert outcome(reader.read, der) == outcome(slowly, der)
        assert outcome(remembering.recall, der) == outcome(slowly, der)


def test_a_uri_that_is_no_identity_is_refused_in_the_library_s_words() -> None:
    reader = CertificateReader()
    for uri in ("spiffe://fleet.internal/device/meters/meter-1", "https://example.org/meter-1", "spiffe:/meter-1"):
        named = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "meter-1")]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "CA")]))
            .public_key(KEY.public_key())
            .serial_number(1)
            .not_valid_before(datetime(2026, 1, 1, tzinfo=UTC))
            .not_valid_after(datetime(2027, 1, 1, tzinfo=UTC))
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=False)
        )
        der = named.sign(ISSUER_KEY, hashes.SHA256()).public_bytes(Encoding.DER)
        assert outcome(reader.read, der) == outcome(slowly, der)


USUAL = shared_device("meter-1").der


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")  # A serial number below 1.
@given(st.lists(st.tuples(st.integers(0, len(USUAL) - 1), st.integers(0, 255)), min_size=1, max_size=3))
@example([(1, 0x81)])
@example([(4, 0x30)])
def test_changed_bytes_are_read_as_the_library_reads_them_or_refused(changes: list[tuple[int, int]]) -> None:
    reader = CertificateReader()
    reader.read(USUAL)
    changed = bytearray(USUAL)
    for position, byte in changes:
        changed[position] = byte
    expected = outcome(slowly, bytes(changed))
    found = outcome(reader.read, bytes(changed))
    if isinstance(expected, CertificateFacts):
        assert found == expected
    # Else OpenSSL has refused it before: key, signature or their algorithms are not read again.


SIGNED = shared_device("meter-1").certificate
USED_BY_OPENSSL = range(USUAL.index(SIGNED.tbs_certificate_bytes) + len(SIGNED.tbs_certificate_bytes), len(USUAL))
"""The signature, which is not read again, and which OpenSSL has encoded anew."""


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
def test_a_byte_changed_anywhere_is_read_as_the_library_reads_it_or_refused() -> None:
    reader = CertificateReader()
    for place, byte in enumerate(USUAL):
        reader.read(USUAL)
        for other in {byte ^ 1, byte ^ 2, byte ^ 0x80, byte - 1 & 255, byte + 1 & 255, 0, 0x82, 255} - {byte}:
            changed = USUAL[:place] + bytes([other]) + USUAL[place + 1 :]
            expected, found = outcome(slowly, changed), outcome(reader.read, changed)
            if isinstance(expected, CertificateFacts):
                assert found == expected, (place, other)
            else:
                assert isinstance(found, tuple) or place in USED_BY_OPENSSL, (place, other)


def deformed(encoded: bytes) -> Iterator[bytes]:
    """Return *encoded*, elements of DER, with one thing in them that is not as it should be, for each there is."""
    elements = list(children(element(SEQUENCE, encoded)))
    for place, each in enumerate(elements):
        before, after = b"".join(elements[:place]), b"".join(elements[place + 1 :])
        inside = content(each)
        size = len(inside).to_bytes(max(1, (len(inside).bit_length() + 7) // 8))
        longer = b"\0" + size if len(inside) > 127 else size  # DER has one way to write a length, the shortest.
        yield before + after
        yield before + each * 2 + after
        yield before + each[:1] + bytes([0x80 | len(longer)]) + longer + inside + after
        if not (each[0] & 0x20 or each[:1] + inside[:1] == OCTET_STRING + SEQUENCE):
            continue
        yield before + element(each[:1], inside + b"\x30") + after
        for other in deformed(inside):
            yield before + element(each[:1], other) + after


def otherwise(tbs: bytes) -> Iterator[bytes]:
    """Return what is in *tbs* deformed, with other serial numbers, and with other times."""
    yield from deformed(content(tbs))
    version, serial, algorithm, issuer, validity, *rest = children(tbs)
    for number in ("", "00", "0001", "0080", "7f", "80", "7f" * 20, "7f" * 21, "00" + "80" * 19, "00" + "80" * 20):
        yield b"".join([version, element(serial[:1], bytes.fromhex(number)), algorithm, issuer, validity, *rest])
    begins, ends = children(validity)
    for moment in (
        b"491231235959Z",
        b"500101000000Z",
        b"270229000000Z",
        b"2701010000Z",
        b"27010100000000Z",
        b"27010100+000Z",
        b"270101000000z",
    ):
        for times in (element(begins[:1], moment) + ends, begins + element(ends[:1], moment)):
            yield b"".join([version, serial, algorithm, issuer, element(SEQUENCE, times), *rest])


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")  # A serial number below 1.
def test_a_certificate_that_is_formed_otherwise_is_read_as_the_library_reads_it_or_refused() -> None:
    reader = CertificateReader()
    tbs, *rest = children(USUAL)
    for other in otherwise(tbs):
        reader.read(USUAL)
        changed = element(SEQUENCE, element(SEQUENCE, other) + b"".join(rest))
        expected, found = outcome(slowly, changed), outcome(reader.read, changed)
        assert found == expected or (isinstance(found, tuple) and isinstance(expected, tuple)), changed.hex()


def read_after(known: bytes, der: bytes) -> tuple[Any, Any]:
    """Return what the library says of *der*, and what a reader does that has read *known* before."""
    reader = CertificateReader()
    reader.read(known)
    return outcome(slowly, der), outcome(reader.read, der)


def test_a_name_in_a_string_that_cannot_hold_it_is_refused_whatever_was_read_before() -> None:
    known = shared_device("meter_1").der
    tbs, *rest = children(known)
    before, name, after = tbs.rpartition(element(b"\x0c", b"meter_1"))
    assert name
    expected, found = read_after(known, element(SEQUENCE, b"".join([before, b"\x13", name[1:], after, *rest])))
    assert expected == found
    assert isinstance(found, tuple), "OpenSSL accepts it, the library does not"


def test_a_second_key_identifier_is_refused_whatever_form_the_first_has() -> None:
    tbs, *rest = children(USUAL)
    *others, extensions = children(tbs)
    usual = [*children(content(extensions))]
    standard = next(each for each in usual if b"\x55\x1d\x0e" in each)
    identifier = next(children(standard))
    long = element(SEQUENCE, identifier + element(OCTET_STRING, element(OCTET_STRING, b"k" * 32)))

    def certificate(*its_own: bytes) -> bytes:
        them = element(SEQUENCE, b"".join([*(each for each in usual if each != standard), *its_own]))
        return element(SEQUENCE, element(SEQUENCE, b"".join([*others, element(b"\xa3", them)])) + b"".join(rest))

    assert isinstance(outcome(slowly, certificate(long)), CertificateFacts)
    expected, found = read_after(certificate(long), certificate(long, standard))
    assert expected == found
    assert isinstance(found, tuple)


def test_a_certificate_cut_anywhere_is_refused() -> None:
    reader = CertificateReader()
    reader.read(USUAL)
    for length in range(len(USUAL)):
        with pytest.raises(ValueError, match=r".*"):
            reader.read(USUAL[:length])


def test_the_second_certificate_of_a_template_is_not_parsed_by_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = CertificateReader()
    reader.read(shared_device("meter-1").der)
    second = shared_device("meter-2")
    expected = facts_of(second.certificate)
    monkeypatch.setattr(x509, "load_der_x509_certificate", None)
    assert reader.read(second.der) == expected
    assert len(reader) == 1


def test_a_certificate_that_comes_again_is_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = CertificateReader()
    first = reader.recall(USUAL)
    assert reader.recall(bytes(bytearray(USUAL))) is first  # Equal bytes, another object.
    monkeypatch.setattr(certificate_reader, "_MOST_CERTIFICATES", 2)
    for name in ("meter-2", "meter-3"):
        reader.recall(shared_device(name).der)
    again = reader.recall(USUAL)
    assert again is not first, "more are remembered than may be"
    assert again == first


def test_another_issuer_is_another_template() -> None:
    pki = shared_pki()
    other = pki.certify(slowly(USUAL).identity, issuer=pki.authority("Another CA"))
    reader = CertificateReader()
    for der in (USUAL, other.der, USUAL):
        assert reader.read(der) == slowly(der)
    assert len(reader) == 2


def test_so_many_templates_are_remembered_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificate_reader, "_MOST_TEMPLATES", 2)
    pki, reader = shared_pki(), CertificateReader()
    others = [pki.certify(slowly(USUAL).identity, issuer=pki.authority(f"Another CA {number}")) for number in range(4)]
    for der in (USUAL, *(each.der for each in others)):
        assert reader.read(der) == slowly(der)
        assert 0 < len(reader) <= 2


def test_validity_is_in_utc() -> None:
    reader = CertificateReader()
    reader.read(USUAL)
    assert reader.read(USUAL).not_after.tzinfo is UTC
