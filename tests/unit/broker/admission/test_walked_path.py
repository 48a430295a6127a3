"""The path that ``fleet-broker check`` walks is the one that OpenSSL walks: both judge the same odd certificates."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import permutations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from broker.admission.refusal import RefusalCode
from broker.admission.walked_path import walk
from provisioning.pki.keys import generate_key
from provisioning.pki.pem import pem_of
from provisioning.pki.tls import ClientCertificate, client_context, server_context
from tests.support.pki import CLIENT, Held, shared_pki
from tests.support.shaken_hands import shaken

PKI = shared_pki()
ROOT = PKI.root
ANOTHER = generate_key().public_key()
DAY = timedelta(days=1)
UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.7"), b"\x05\x00")
AKI = x509.AuthorityKeyIdentifier
ELSEWHERE = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Elsewhere")])
Extensions = dict[x509.ExtensionType, bool]
"""Whether each is critical."""


def made(
    name: str, issuer: Held, extensions: Extensions, *, is_ca: bool = False, path_length: int | None = None
) -> Held:
    key = generate_key()
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(issuer.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(PKI.now - timedelta(hours=1))
        .not_valid_after(PKI.now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=path_length), critical=True)
    )
    for each, critical in extensions.items():
        builder = builder.add_extension(each, critical)
    chain = () if issuer is ROOT else (issuer.certificate, *issuer.chain)
    return Held(builder.sign(issuer.key, hashes.SHA256()), key, chain)


def device(extensions: Extensions) -> Held:
    return made("meter-1", ROOT, extensions)


def below(extensions: Extensions) -> Held:
    """Return a device below a CA with *extensions*."""
    return made("meter-1", made("Odd CA", ROOT, extensions, is_ca=True), {})


def renewed(authority: Held, begins: int, ends: int) -> x509.Certificate:
    """Return another certificate by `ROOT` of *authority*, with its key, that begins and ends so many days from now."""
    there = authority.certificate
    builder = (
        x509.CertificateBuilder()
        .subject_name(there.subject)
        .issuer_name(ROOT.certificate.subject)
        .public_key(there.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(PKI.now + timedelta(days=begins))
        .not_valid_after(PKI.now + timedelta(days=ends))
    )
    for each in there.extensions:
        builder = builder.add_extension(each.value, each.critical)
    return builder.sign(ROOT.key, hashes.SHA256())


def shake_hands(held: Held, anchors: Sequence[x509.Certificate] = (ROOT.certificate,)) -> str:
    """Return OpenSSL's word on *held* in a handshake, empty if it accepts it."""
    own = PKI.broker().credential
    context = server_context(own, pem_of(*anchors).decode(), client_certificate=ClientCertificate.REQUIRED)
    client = client_context(pem_of(ROOT.certificate).decode(), held.credential)
    try:
        server = shaken(client, context)
    except ssl.SSLCertVerificationError as error:
        return error.verify_message
    assert server.getpeercert(binary_form=True) == held.der
    return ""


ANY_PURPOSE = [ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]
SERVER_ONLY = [ExtendedKeyUsageOID.SERVER_AUTH]
ODD: dict[str, tuple[Callable[[Extensions], Held], Extensions, str]] = {
    "nothing odd": (device, {}, ""),
    "an unknown extension": (device, {UNKNOWN: False}, ""),
    "a critical one": (device, {UNKNOWN: True}, RefusalCode.TLS_HANDSHAKE_FAILED),
    "a critical one of the CA": (below, {UNKNOWN: True}, RefusalCode.TLS_HANDSHAKE_FAILED),
    "a critical one that OpenSSL does not expect to be": (
        device,
        {AKI.from_issuer_public_key(ROOT.key.public_key()): True},
        RefusalCode.TLS_HANDSHAKE_FAILED,
    ),
    "a critical one that it knows": (device, {x509.OCSPNoCheck(): True}, ""),
    "the issuer's key": (device, {AKI.from_issuer_public_key(ROOT.key.public_key()): False}, ""),
    "another key": (device, {AKI.from_issuer_public_key(ANOTHER): False}, RefusalCode.UNTRUSTED_ISSUER),
    "another key of the CA's issuer": (
        below,
        {AKI.from_issuer_public_key(ANOTHER): False},
        RefusalCode.UNTRUSTED_ISSUER,
    ),
    "another certificate of the issuer": (
        device,
        {AKI(None, [x509.DirectoryName(ROOT.certificate.subject)], 7): False},
        RefusalCode.UNTRUSTED_ISSUER,
    ),
    "another issuer of its issuer": (
        device,
        {AKI(None, [x509.DirectoryName(ELSEWHERE)], ROOT.certificate.serial_number): False},
        RefusalCode.UNTRUSTED_ISSUER,
    ),
    "what is true of the issuer": (
        device,
        {AKI(None, [x509.DirectoryName(ROOT.certificate.subject)], ROOT.certificate.serial_number): False},
        "",
    ),
    "a CA for clients": (below, {x509.ExtendedKeyUsage(CLIENT): False}, ""),
    "a CA for servers": (below, {x509.ExtendedKeyUsage(SERVER_ONLY): False}, RefusalCode.WRONG_PURPOSE),
    "a CA for anything": (below, {x509.ExtendedKeyUsage(ANY_PURPOSE): False}, RefusalCode.WRONG_PURPOSE),
}


@pytest.mark.parametrize(("make", "extensions", "code"), ODD.values(), ids=ODD.keys())
def test_what_openssl_refuses_is_refused_and_nothing_else(
    make: Callable[[Extensions], Held], extensions: Extensions, code: str
) -> None:
    held = make(extensions)
    walked, path = walk([held.certificate, *held.chain], [ROOT.certificate], PKI.now)
    said = shake_hands(held)
    assert walked.passed is (not said), (walked, said)
    assert walked.code == code
    assert bool(path) is walked.passed


@pytest.mark.parametrize(("below", "accepted"), [("A CA", True), ("a  ca", True), ("Another CA", False)])
def test_a_ca_that_certifies_a_new_key_of_its_own_has_no_ca_below_it(below: str, accepted: bool) -> None:
    authority = made("A CA", ROOT, {}, is_ca=True, path_length=0)
    keys = {AKI.from_issuer_public_key(authority.key.public_key()): False, x509.SubjectKeyIdentifier(b"new"): False}
    new = made(below, authority, keys, is_ca=True)  # By its keys OpenSSL tells it from a self-signed one.
    held = made("meter-1", new, {})
    walked, _ = walk([held.certificate, *held.chain], [ROOT.certificate], PKI.now)
    said = shake_hands(held)
    assert walked.passed is (not said) is accepted, (walked, said)


@pytest.mark.parametrize("kind", ["curve", "another kind"])
@pytest.mark.parametrize("place", ["anchor", "intermediate"])
def test_of_cas_of_one_name_the_first_that_could_have_signed_is_tried_and_no_other(kind: str, place: str) -> None:
    authority = ROOT if place == "anchor" else made("Odd CA", ROOT, {}, is_ca=True)
    held, name = made("meter-1", authority, {}), authority.certificate.subject
    key = generate_key() if kind == "curve" else Ed25519PrivateKey.generate()
    builder = x509.CertificateBuilder(name, name, key.public_key(), 5, PKI.now - DAY, PKI.now + DAY)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    namesake = builder.sign(key, hashes.SHA256() if kind == "curve" else None)
    for chain in permutations([namesake, authority.certificate]):
        anchors = list(chain) if place == "anchor" else [ROOT.certificate]
        held = replace(held, chain=() if place == "anchor" else chain)
        walked, _ = walk([held.certificate, *held.chain], anchors, PKI.now)
        said = shake_hands(held, anchors)
        assert walked.passed is (not said) is (kind != "curve" or chain[0] is not namesake), (walked, said)
        assert walked.passed or "OpenSSL tries no other" in walked.detail


@pytest.mark.parametrize("kind", [Ed25519PrivateKey, Ed448PrivateKey])
def test_a_key_of_another_kind_than_the_signature_is_not_tried(
    kind: type[Ed25519PrivateKey | Ed448PrivateKey],
) -> None:
    """A CA that has gone over from one kind to another: below the new key a reload put out whoever does not name it."""
    key, other, name = kind.generate(), Ed25519PrivateKey.generate(), ROOT.certificate.subject
    own, by = made("meter-1", ROOT, {}), (PKI.now - DAY, PKI.now + DAY)
    bare = x509.CertificateBuilder(name, own.certificate.subject, own.certificate.public_key(), 6, *by)
    held = replace(own, certificate=bare.sign(key, None), chain=())
    anchors = [ROOT.certificate]  # Of the key that it had before.
    for each in (other, key):
        builder = x509.CertificateBuilder(name, name, each.public_key(), 5, *by)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        anchors.append(builder.sign(each, None))
    if kind is Ed25519PrivateKey:
        del anchors[1]
    walked, _ = walk([held.certificate], anchors, PKI.now)
    assert walked.passed, walked
    assert not shake_hands(held, anchors)
    assert not walk([held.certificate], anchors[:-1], PKI.now)[0].passed
    assert shake_hands(held, anchors[:-1])


EXPIRED, NOT_YET = (-9, -1), (1, 9)


@pytest.mark.parametrize(
    ("others", "present"), [([EXPIRED], True), ([NOT_YET], True), ([EXPIRED], False), ([EXPIRED, NOT_YET], False)]
)
@pytest.mark.parametrize("place", ["anchor", "intermediate"])
def test_of_a_ca_that_was_renewed_with_its_key_the_certificate_in_date_counts(
    others: list[tuple[int, int]], present: bool, place: str
) -> None:
    authority = ROOT if place == "anchor" else made("Odd CA", ROOT, {}, is_ca=True)
    held = made("meter-1", authority, {})
    theirs = [renewed(authority, *each) for each in others] + [authority.certificate] * present
    anchors = theirs if place == "anchor" else [ROOT.certificate]
    held = replace(held, chain=() if place == "anchor" else tuple(theirs))
    walked, _ = walk([held.certificate, *held.chain], anchors, PKI.now)
    said = shake_hands(held, anchors)
    assert walked.passed is (not said) is present, (walked, said)
    assert walked.code == ("" if present else _code_of(said))


def test_an_expired_anchor_counts_before_what_came_with_the_certificate() -> None:
    authority = made("Odd CA", ROOT, {}, is_ca=True)
    held = made("meter-1", authority, {})
    anchors = [ROOT.certificate, renewed(authority, *EXPIRED)]
    walked, _ = walk([held.certificate, *held.chain], anchors, PKI.now)
    assert walked.code == _code_of(shake_hands(held, anchors)) == RefusalCode.EXPIRED


def test_a_ca_that_has_expired_below_no_anchor_is_not_trusted() -> None:
    """It was said that it had expired, and a reload would have sent a will for that."""
    authority = made("Odd CA", ROOT, {}, is_ca=True)
    held = replace(made("meter-1", authority, {}), chain=(renewed(authority, *EXPIRED), ROOT.certificate))
    anchors = [PKI.authority("Another Root CA").certificate]
    walked, _ = walk([held.certificate, *held.chain], anchors, PKI.now)
    assert walked.code == RefusalCode.UNTRUSTED_ISSUER
    assert "self-signed certificate in certificate chain" in shake_hands(held, anchors)
    walked, _ = walk([held.certificate, *held.chain], [ROOT.certificate], PKI.now)
    assert walked.code == _code_of(shake_hands(held)) == RefusalCode.EXPIRED


def _code_of(said: str) -> str:
    return RefusalCode.NOT_YET_VALID if "not yet valid" in said else RefusalCode.EXPIRED if "expired" in said else said


def test_a_root_that_looks_like_an_anchor_and_is_none_leads_nowhere() -> None:
    """OpenSSL wants that very certificate; check said that the device is admitted."""
    earlier = PKI.authority("Test Root CA", key=ROOT.key)
    stated = AKI(None, [x509.DirectoryName(earlier.certificate.subject)], earlier.certificate.serial_number)
    held = replace(made("meter-1", earlier, {stated: False}), chain=(earlier.certificate,))
    walked, _ = walk([held.certificate, *held.chain], [ROOT.certificate], PKI.now)
    assert not walked.passed
    assert walked.detail == "CN=Test Root CA is self-signed: no trust anchor vouches for it"
    assert shake_hands(held)


def test_where_names_are_constrained_it_is_said_that_only_a_handshake_tells() -> None:
    constraints = x509.NameConstraints([x509.UniformResourceIdentifier("elsewhere.example")], None)
    held = below({constraints: True})
    walked, _ = walk([held.certificate, *held.chain], [ROOT.certificate], PKI.now)
    assert walked.passed
    assert walked.detail.endswith("CN=Odd CA constrains names, and only a handshake tells whether it allows these")
