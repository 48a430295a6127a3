"""Whatever answers for anchors is anchors, or is refused with the reason: nothing in it ends the broker that asks."""

from __future__ import annotations

import re
import stat
from base64 import b64encode, encodebytes
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

from broker.settings.trust_settings import TrustSettings
from broker.sources import anchor_copy
from broker.sources.anchor_copy import AnchorsNotFetched, AnchorsRefused, anchors_in, copy_of, keep, read_copy
from device_sim.attack.own_curve import on_own_curve
from provisioning.pki import certificate_message
from provisioning.pki.keys import generate_key
from provisioning.pki.tls import TlsConfigurationError
from tests.support.manufacturer import Manufacturer
from tests.support.panic import panic
from tests.support.pki import shared_pki
from tests.support.year_0 import SAID, since_year_0

PKI = shared_pki()
BOTH = [PKI.root.certificate, PKI.issuing.certificate]
BUNDLE = pkcs7.serialize_certificates(BOTH, Encoding.DER)
NOT_SIGNED = bytes.fromhex("300f06092a864886f70d010701a0020400")
"""PKCS #7 that holds data (RFC 5652 §4), and so no certificates."""
V3, V5 = b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x04"


def pem(label: str, der: bytes) -> bytes:
    return f"-----BEGIN {label}-----\n{encodebytes(der).decode()}-----END {label}-----\n".encode()


def settings(*pins: str) -> TrustSettings:
    return TrustSettings(
        name="x", anchors_url="http://127.0.0.1/x", anchors_sha256=pins or ("00" * 32,), unsafe_no_revocation=True
    )


@pytest.mark.parametrize("form", [bytes, b64encode, lambda der: pem("PKCS7", der)])
def test_pkcs_7_is_read_in_every_form(form: Callable[[bytes], bytes]) -> None:
    pins = [each.fingerprint(SHA256()).hex() for each in BOTH]
    assert anchors_in(settings(*pins), form(BUNDLE), PKI.now) == BOTH


@pytest.mark.parametrize(
    "content",
    [
        NOT_SIGNED,
        b64encode(NOT_SIGNED),
        pem("PKCS7", NOT_SIGNED),
        BUNDLE.replace(V3, V5),
        PKI.root.der.replace(V3, V5),
        pem("CERTIFICATE", PKI.root.der.replace(V3, V5)),
        b"\x30",
        b"\xff",
    ],
    ids=["data", "base64", "PEM", "version 5 in PKCS #7", "version 5", "version 5 in PEM", "cut off", "no text"],
)
def test_what_is_no_certificate_is_refused(content: bytes) -> None:
    with pytest.raises(AnchorsRefused, match=r"^neither PEM nor PKCS #7 certificates$"):
        anchors_in(settings(), content, PKI.now)


OWN_CURVE = pkcs7.serialize_certificates([x509.load_der_x509_certificate(on_own_curve(BOTH[0]))], Encoding.DER)
MANY_KEYS = bytes.fromhex("06072a8648ce3d0201") * (certificate_message.MOST_KEYS + 1)


@pytest.mark.parametrize(
    ("content", "where"),
    [
        (PKI.root.der, (x509, "load_der_x509_certificate")),
        (pem("CERTIFICATE", PKI.root.der), (x509, "load_pem_x509_certificates")),
        (BUNDLE, (pkcs7, "load_der_pkcs7_certificates")),
        (PKI.root.der, (anchor_copy, "check_readable")),
    ],
)
def test_an_answer_at_which_the_library_panics_is_refused(
    content: bytes, where: tuple[object, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would end the broker, which asks again and again."""
    monkeypatch.setattr(*where, lambda _: panic())
    with pytest.raises(AnchorsRefused):
        anchors_in(settings(PKI.root.certificate.fingerprint(SHA256()).hex()), content, PKI.now)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (OWN_CURVE, "a key in it describes a curve of its own"),
        (pem("PKCS7", OWN_CURVE), "a key in it describes a curve of its own"),
        (BUNDLE + MANY_KEYS, "more than 500 keys"),
    ],
)
def test_pkcs_7_that_takes_long_to_read_is_not_read(content: bytes, why: str) -> None:
    """A megabyte of such certificates held all threads of the broker for minutes."""
    with pytest.raises(AnchorsRefused) as refused:
        anchors_in(settings(), content, PKI.now)
    assert str(refused.value.__cause__) == why


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("label", ["PKCS7", "CERTIFICATE"])
def test_pkcs_7_beside_something_else_is_refused_as_a_whole(label: str, first: bool) -> None:
    """Else those of one of the two were dropped, and nothing said so."""
    other = BUNDLE if label == "PKCS7" else PKI.root.der
    parts = [pem("PKCS7", BUNDLE), pem(label, other)]
    pins = [each.fingerprint(SHA256()).hex() for each in BOTH]
    with pytest.raises(AnchorsRefused, match=r"^not whole: there is something else beside the PKCS #7$"):
        anchors_in(settings(*pins), b"".join(parts if first else reversed(parts)), PKI.now)


@pytest.mark.parametrize("has_a_name", [True, False])
def test_a_certificate_that_cannot_be_read_is_refused_and_named(has_a_name: bool) -> None:
    maker = Manufacturer()
    made = x509.load_pem_x509_certificate(maker.unreadable_ca().encode()) if has_a_name else maker.unreadable()
    fingerprint = made.fingerprint(SHA256()).hex()
    name = made.subject.rfc4514_string() if has_a_name else f"SHA-256 {fingerprint}"
    with pytest.raises(AnchorsRefused, match=rf"^{re.escape(name)} cannot be read: ."):
        anchors_in(settings(fingerprint), made.public_bytes(Encoding.DER), PKI.now)


def certificate_without_constraints(issuer: str, subject: str) -> x509.Certificate:
    """Return one as they were made before there was BasicConstraints, and as some devices have it."""
    names = [x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, each)]) for each in (subject, issuer)]
    key = generate_key()
    day = timedelta(days=1)
    builder = x509.CertificateBuilder(names[1], names[0], key.public_key(), 1, PKI.now - day, PKI.now + day)
    return builder.sign(key, SHA256())


@pytest.mark.parametrize("issuer", ["Old Root CA", "Another CA"])
def test_without_basic_constraints_only_a_root_is_a_ca(issuer: str) -> None:
    certificate = certificate_without_constraints(issuer, "Old Root CA")
    pinned = settings(certificate.fingerprint(SHA256()).hex())
    content = certificate.public_bytes(Encoding.PEM)
    if issuer == "Old Root CA":
        assert anchors_in(pinned, content, PKI.now) == [certificate]
    else:
        with pytest.raises(AnchorsRefused, match=r"^CN=Old Root CA is not the certificate of a CA$"):
            anchors_in(pinned, content, PKI.now)


def test_an_answer_of_which_nothing_is_valid_today_is_refused_and_a_copy_is_not() -> None:
    """A copy was good when it came; what has ended since, TLS says at each handshake."""
    pinned = settings(BOTH[0].fingerprint(SHA256()).hex())
    content, later = PKI.root.der, PKI.now + timedelta(days=3)
    with pytest.raises(AnchorsRefused, match=rf"^none of 1 certificates is valid on {later:%Y-%m-%d}$"):
        anchors_in(pinned, content, later)
    assert anchors_in(pinned, content, None) == [BOTH[0]]


@pytest.mark.parametrize("most", [2, 1])
def test_an_answer_of_more_certificates_than_are_taken_is_refused(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Each is compared with every other, and with every client's path."""
    monkeypatch.setattr(anchor_copy, "MOST_ANCHORS", most)
    pinned = settings(*(each.fingerprint(SHA256()).hex() for each in BOTH))
    if most == len(BOTH):
        assert anchors_in(pinned, BUNDLE, PKI.now) == BOTH
    else:
        with pytest.raises(AnchorsRefused, match=r"^2 certificates; 1 are taken at most$"):
            anchors_in(pinned, BUNDLE, PKI.now)


def test_an_anchor_of_a_time_that_cannot_be_read_is_refused() -> None:
    old = since_year_0(PKI.root.certificate, PKI.root.key)
    with pytest.raises(AnchorsRefused, match=f"Test Root CA cannot be read: {SAID}"):
        anchors_in(settings(old.fingerprint(SHA256()).hex()), old.public_bytes(Encoding.DER), PKI.now)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_pinned_certificate_may_be_missing_only_where_the_server_is_known(scheme: str) -> None:
    pins = [each.fingerprint(SHA256()).hex() for each in BOTH]
    whole = settings(*pins).model_copy(update={"anchors_url": f"{scheme}://127.0.0.1/x"})
    both = b"".join(each.public_bytes(Encoding.PEM) for each in reversed(BOTH))
    assert anchors_in(whole, both, PKI.now) == BOTH, "in the order of the pins"
    if scheme == "https":
        assert anchors_in(whole, PKI.root.der, PKI.now) == [BOTH[0]]
    else:
        with pytest.raises(AnchorsRefused, match=f"^the certificate {pins[1]} of anchors_sha256 is not there$"):
            anchors_in(whole, PKI.root.der, PKI.now)


def test_a_copy_is_its_owner_s_alone_and_of_one_url_and_its_demands(tmp_path: Path) -> None:
    pinned = settings(BOTH[0].fingerprint(SHA256()).hex())
    path = copy_of(pinned, tmp_path)
    assert path is not None
    with pytest.raises(AnchorsNotFetched, match="could not be fetched yet"):
        read_copy(pinned, path)
    keep(path, BOTH[:1])
    assert read_copy(pinned, path) == BOTH[:1]
    assert (stat.S_IMODE(path.stat().st_mode), stat.S_IMODE(path.parent.stat().st_mode)) == (0o600, 0o700)
    assert copy_of(settings(), tmp_path) != path, "other pins begin anew"
    assert copy_of(pinned.model_copy(update={"anchors_url": None}), tmp_path) is None
    path.write_bytes(b"")
    with pytest.raises(TlsConfigurationError, match=r"is damaged \(an empty answer\); remove it"):
        read_copy(pinned, path)
    path.unlink()
    path.mkdir()
    with pytest.raises(TlsConfigurationError, match="cannot be read: Is a directory"):
        read_copy(pinned, path)
