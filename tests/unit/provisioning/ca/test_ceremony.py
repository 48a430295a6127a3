"""What a root signs and what it refuses; the certificates between roots, before openssl and another linter."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from provisioning.ca.ceremony import (
    Authority,
    CeremonyRefused,
    CertificateAuthority,
    IssuingCaRequest,
    check_issuing_ca,
    found_authority,
    issuing_ca_csr,
    issuing_ca_name,
    read_issuing_ca_csr,
    sign_issuing_ca,
    succeed_root,
)
from provisioning.ca.issuer import IssuanceRequest, Issuer, IssuerUrls
from provisioning.ca.profile import ProfileConfig, profile_of
from provisioning.pki.crl import distribution_points
from provisioning.pki.identity import Identity
from provisioning.pki.issued_by import is_issued_by
from provisioning.pki.keys import PrivateKey, generate_key, key_identifier, load_key
from provisioning.pki.role import Role
from tests.support import weak_keys
from tests.support.openssl import openssl
from tests.support.pki import pem_of
from tests.support.pkilint import findings
from tests.support.requests import NOON
from tests.support.slow_keys import rsa_key

SERIAL = 1 << 126
URLS = IssuerUrls("http://ca.example.org/crl/root-ca.crl", "http://ca.example.org/ca/root-ca.crt")
NAME = issuing_ca_name("fleet.internal", 2)
CA_USAGE = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
KNOWN = {"INFO pkix.subject_key_identifier_method_1_identified"}
"""Waived for every certificate, see `test_pkilint.py`."""


@pytest.fixture(scope="module")
def authority() -> Authority:
    return found_authority("fleet.internal", NOON, (SERIAL | 1, SERIAL | 2), URLS)


def request_pem(key: PrivateKey, **changes: bytes) -> bytes:
    der = issuing_ca_csr(NAME, key).public_bytes(Encoding.DER)
    for old, new in changes.items():
        der = der.replace(old.encode(), new)
    return openssl("req", "-inform", "DER", "-outform", "PEM", data=der)


def leaf_of(ca: CertificateAuthority) -> x509.Certificate:
    issuer = Issuer(ca.certificate, ca.key)
    identity = Identity("fleet.internal", Role.DEVICE, "meter-17", "north")
    wanted = IssuanceRequest(identity, generate_key().public_key(), SERIAL | 7, NOON)
    return issuer.issue(issuer.prepare(profile_of(ProfileConfig("device", timedelta(days=30))), wanted))


@pytest.mark.parametrize(
    "key", [generate_key(), ec.generate_private_key(ec.SECP384R1()), rsa_key(3072)],
    ids=["P-256", "P-384", "RSA"],
)  # fmt: skip
def test_a_request_is_read_signed_and_found_good(authority: Authority, key: PrivateKey) -> None:
    wanted = read_issuing_ca_csr(request_pem(key))
    assert (wanted.subject, wanted.public_key) == (NAME, key.public_key())
    certificate = sign_issuing_ca(authority.root_ca, wanted, SERIAL | 3, NOON, URLS)
    check_issuing_ca(certificate, authority.root_ca.certificate, NOON)
    assert findings(certificate) <= KNOWN


def test_a_request_for_a_weak_key_or_without_its_key_is_refused() -> None:
    with pytest.raises(CeremonyRefused, match="CVE-2017-15361"):
        read_issuing_ca_csr(request_pem(weak_keys.roca()))
    with pytest.raises(CeremonyRefused, match="not signed with the key that it contains"):
        read_issuing_ca_csr(request_pem(generate_key(), **{"issuing CA 2": b"issuing CA 3"}))
    with pytest.raises(CeremonyRefused, match=r"^this is not a PKCS #10 request in PEM: give the file that ca export-"):
        read_issuing_ca_csr(b"nonsense")


@pytest.mark.parametrize("asked", [None, x509.BasicConstraints(ca=False, path_length=None)], ids=["nothing", "no CA"])
def test_a_request_that_asks_for_no_ca_makes_none(asked: x509.BasicConstraints | None) -> None:
    """A device's, taken for the issuing CA's: the device could certify others."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(NAME)
    if asked is not None:
        builder = builder.add_extension(asked, critical=True)
    request = builder.sign(generate_key(), hashes.SHA256())
    with pytest.raises(CeremonyRefused, match=r"asks for no CA's certificate .*: give the file that ca export-csr has"):
        read_issuing_ca_csr(request.public_bytes(Encoding.PEM))


def test_everything_that_is_wrong_is_said_at_once(authority: Authority) -> None:
    root = authority.root_ca
    key = generate_key()
    wrong = (
        x509.CertificateBuilder()
        .subject_name(root.certificate.subject)
        .issuer_name(root.certificate.subject)
        .public_key(key.public_key())
        .serial_number(SERIAL | 4)
        .not_valid_before(NOON - timedelta(days=2))
        .not_valid_after(NOON - timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=3), critical=True)
        .sign(root.key, hashes.SHA256())
    )
    with pytest.raises(CeremonyRefused) as caught:
        check_issuing_ca(wrong, root.certificate, NOON)
    for words in ("names are not", "not valid now", "basic constraints", "key usage", "subject key identifier",
                  "authority key identifier"):  # fmt: skip
        assert words in str(caught.value)
    stranger = found_authority("fleet.internal", NOON, (SERIAL | 8, SERIAL | 9))
    with pytest.raises(CeremonyRefused, match="it was not issued by CN=Fleetgate root CA"):
        check_issuing_ca(stranger.issuing_ca.certificate, root.certificate, NOON)


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), "its extended key usage lacks clientAuth or"),
        (
            x509.NameConstraints([x509.DirectoryName(NAME)], None),
            "its name constraints permit subjects that ours are not",
        ),
        (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4.5"), b"\x05\x00"), "1.2.3.4.5 is critical"),
    ],
    ids=["purposes", "names", "unknown"],
)
@pytest.mark.parametrize("of_root", [False, True], ids=["its own", "its root's"])
def test_a_ca_whose_certificates_nobody_would_believe_is_none(
    tmp_path: Path, extra: x509.ExtensionType, words: str, of_root: bool
) -> None:
    """openssl is asked about a device's certificate below: it has the last word."""
    root_key, key = generate_key(), generate_key()
    root = signed_ca("Root", "Root", root_key, root_key, None, extra if of_root else None)
    certificate = signed_ca("Issuing", "Root", key, root_key, 0, None if of_root else extra)
    with pytest.raises(CeremonyRefused, match=words.replace("its ", "its root's ") if of_root else words):
        check_issuing_ca(certificate, root, NOON)
    leaf = leaf_of(CertificateAuthority(certificate, key))
    for name, each in (("root", root), ("issuing", certificate), ("leaf", leaf)):
        (tmp_path / name).write_bytes(each.public_bytes(Encoding.PEM))
    chain = ("-CAfile", tmp_path / "root", "-untrusted", tmp_path / "issuing", tmp_path / "leaf")
    moment = str(int(NOON.timestamp()))
    assert not openssl("verify", "-attime", moment, "-purpose", "sslclient", *chain, check=False)


def test_a_ca_whose_certificates_would_need_a_policy_is_none(tmp_path: Path) -> None:
    """openssl has the last word, as above; it asks for policies only where it is told to, others always."""
    root_key, key = generate_key(), generate_key()
    root = signed_ca("Root", "Root", root_key, root_key)
    certificate = signed_ca("Issuing", "Root", key, root_key, 0, x509.PolicyConstraints(0, None))
    with pytest.raises(CeremonyRefused, match="its policy constraints demand a certificate policy, of which ours have"):
        check_issuing_ca(certificate, root, NOON)
    inhibiting = signed_ca("Issuing", "Root", key, root_key, 0, x509.PolicyConstraints(None, 0))
    with pytest.raises(
        CeremonyRefused, match=r"its extension 2\.5\.29\.36 is critical, and OpenSSL or GnuTLS does not"
    ):
        check_issuing_ca(inhibiting, root, NOON)
    check_issuing_ca(plain := signed_ca("Issuing", "Root", key, root_key, 0), root, NOON)
    check_issuing_ca(
        plain,
        signed_ca("Root", "Root", root_key, root_key, None, x509.PolicyConstraints(None, 0)),
        NOON,
    )
    for name, each in (
        ("root", root),
        ("issuing", certificate),
        ("leaf", leaf_of(CertificateAuthority(certificate, key))),
    ):
        (tmp_path / name).write_bytes(pem_of(each))
    chain = ("-CAfile", tmp_path / "root", "-untrusted", tmp_path / "issuing", tmp_path / "leaf")
    said = [openssl("verify", "-attime", str(int(NOON.timestamp())), *also, *chain, check=False)
            for also in ((), ("-policy_check",))]  # fmt: skip
    assert [each.endswith(b": OK\n") for each in said] == [True, False]


def test_a_root_that_may_have_no_ca_under_it_has_none() -> None:
    root_key, key = generate_key(), generate_key()
    root, certificate = signed_ca("Root", "Root", root_key, root_key, 0), signed_ca("Issuing", "Root", key, root_key, 0)
    with pytest.raises(CeremonyRefused, match="its root may have no CA under it: its root's path length is 0"):
        check_issuing_ca(certificate, root, NOON)
    none = signed_ca("Root", "Root", root_key, root_key, None, ca=False)
    with pytest.raises(CeremonyRefused, match="its root is not a CA by its basic constraints"):
        check_issuing_ca(certificate, none, NOON)
    good = signed_ca("Root", "Root", root_key, root_key, None)
    check_issuing_ca(certificate, good, NOON)


_NO_CERTIFICATES = x509.KeyUsage(True, False, False, False, False, False, True, False, False)


@pytest.mark.parametrize(
    ("root", "words"),
    [
        ({"signer": generate_key(), "issuer": "Above"}, "its root is none: it was issued by CN=Above, or by another"),
        ({"signer": generate_key()}, "its root is none: it was issued by CN=Root, or by another key of that name"),
        ({"usage": _NO_CERTIFICATES}, "its root's key usage does not include keyCertSign"),
        ({"not_before": NOON + timedelta(days=1)}, "its root is not valid yet"),
        ({"key": rsa_key(1024)}, "its root's key has 1024 bits, which is too weak for TLS"),
    ],
    ids=["below another", "cross", "usage", "future", "weak"],
)
def test_a_root_that_nobody_would_believe_is_none(tmp_path: Path, root: dict[str, Any], words: str) -> None:
    """openssl has the last word, as above."""
    key, root_key = generate_key(), root.pop("key", None) or generate_key()
    made = signed_ca(**{"subject": "Root", "issuer": "Root", "key": root_key, "signer": root_key, **root})
    certificate = signed_ca("Issuing", "Root", key, root_key, 0)
    with pytest.raises(CeremonyRefused, match=f"^this is not a certificate for an issuing CA: {words}[^;]*$"):
        check_issuing_ca(certificate, made, NOON)
    (tmp_path / "root").write_bytes(pem_of(made))
    (tmp_path / "issuing").write_bytes(pem_of(certificate))
    (tmp_path / "leaf").write_bytes(pem_of(leaf_of(CertificateAuthority(certificate, key))))
    chain = ("-CAfile", tmp_path / "root", "-untrusted", tmp_path / "issuing", tmp_path / "leaf")
    asked = "verify", "-attime", str(int(NOON.timestamp())), "-auth_level", "2", *chain
    assert not openssl(*asked, check=False)


def test_a_root_whose_key_identifier_the_store_has_no_room_for_is_said_to_be_one() -> None:
    """On PostgreSQL the CA could not be revoked, and that would show on the day when it has to be."""
    key, root_key = generate_key(), generate_key()
    for octets in (20, 21):
        identifier = b"\x01" * octets
        root = signed_ca("Root", "Root", root_key, root_key, key_id=identifier, above=identifier)
        certificate = signed_ca("Issuing", "Root", key, root_key, 0, above=identifier)
        if octets == 20:
            check_issuing_ca(certificate, root, NOON)
            continue
        with pytest.raises(CeremonyRefused, match=r"its root's subject key identifier has 21 octets, 20 at most$"):
            check_issuing_ca(certificate, root, NOON)


def test_an_old_root_that_has_signed_itself_with_sha1_is_one(tmp_path: Path) -> None:
    """Nobody verifies a trust anchor's own signature."""
    key = generate_key()
    files = "-keyout", tmp_path / "key", "-out", tmp_path / "root"
    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", *files, "-subj", "/CN=Root", "-days", "4000", "-sha1")
    root = x509.load_pem_x509_certificate((tmp_path / "root").read_bytes())
    now = root.not_valid_before_utc
    wanted = IssuingCaRequest(NAME, key.public_key())
    check_issuing_ca(sign_issuing_ca(CertificateAuthority(root, load_key(tmp_path / "key")), wanted, 7, now), root, now)
    (tmp_path / "csr").write_bytes(issuing_ca_csr(NAME, key).public_bytes(Encoding.PEM))
    (tmp_path / "extensions").write_text(
        "basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign,cRLSign\n"
        "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
    )
    sign = ("x509", "-req", "-in", tmp_path / "csr", "-CA", tmp_path / "root", "-CAkey", tmp_path / "key", "-days", "9",
            "-extfile", tmp_path / "extensions")  # fmt: skip
    for options, words in (
        (["-sha1"], "it is signed with sha1, which is too weak for TLS: have it signed with SHA-256"),
        (["-set_serial", f"0x1{'0' * 40}"], "its serial number 1(0){40} is none: have it signed with one of 1 to 20"),
    ):
        certificate = x509.load_pem_x509_certificate(openssl(*sign, *options))
        with pytest.raises(CeremonyRefused, match=words):
            check_issuing_ca(certificate, root, certificate.not_valid_before_utc)


def signed_ca(
    subject: str,
    issuer: str,
    key: PrivateKey,
    signer: PrivateKey,
    path_length: int | None = None,
    extra: x509.ExtensionType | None = None,
    *,
    ca: bool = True,
    usage: x509.KeyUsage = CA_USAGE,
    not_before: datetime = NOON - timedelta(days=1),
    key_id: bytes | None = None,
    above: bytes | None = None,
) -> x509.Certificate:
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, each)]) for each in (subject, issuer)]
    builder = (
        x509.CertificateBuilder(names[1], names[0], key.public_key(), x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(NOON + timedelta(days=300))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=path_length), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier(key_id or key_identifier(key.public_key())), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier(above or key_identifier(signer.public_key()), None, None), critical=False
        )
    )
    if extra is not None:
        builder = builder.add_extension(extra, critical=True)
    return builder.sign(signer, hashes.SHA256())


def test_nothing_wrong_is_signed(authority: Authority) -> None:
    wanted = IssuingCaRequest(authority.root_ca.certificate.subject, generate_key().public_key())
    with pytest.raises(CeremonyRefused, match="would be wrong: its names are not those of a CA under this root"):
        sign_issuing_ca(authority.root_ca, wanted, SERIAL | 3, NOON)
    end = authority.root_ca.certificate.not_valid_after_utc
    for after in (end, end + timedelta(days=1)):
        with pytest.raises(CeremonyRefused, match="the root expired on 2037-02-28: it can sign nothing more"):
            sign_issuing_ca(authority.root_ca, replace(wanted, subject=NAME), SERIAL | 3, after)


def test_a_root_that_has_expired_names_no_successor(authority: Authority) -> None:
    end = authority.root_ca.certificate.not_valid_after_utc
    serials = (SERIAL | 10, SERIAL | 11, SERIAL | 12)
    with pytest.raises(CeremonyRefused, match="the root expired on 2037-02-28: it can sign nothing more"):
        succeed_root(authority.root_ca, generate_key(), "fleet.internal", serials, end)


def test_old_and_new_root_reach_what_is_under_the_other(authority: Authority, tmp_path: Path) -> None:
    key = generate_key()
    numbers, urls = (
        (SERIAL | 10, SERIAL | 11, SERIAL | 12),
        (URLS, replace(URLS, crl="http://ca.example.org/crl/2.crl")),
    )
    found = succeed_root(authority.root_ca, key, "fleet.internal", numbers, NOON, urls)
    new_root = CertificateAuthority(found.new_root, key)
    issuing_key = generate_key()
    under_new = sign_issuing_ca(new_root, IssuingCaRequest(NAME, issuing_key.public_key()), SERIAL | 13, NOON)
    old_root = authority.root_ca.certificate
    # RFC 7030 §4.1.3, RFC 4210 §4.4: who has signed whose key.
    assert is_issued_by(found.new_with_old, old_root)
    assert found.new_with_old.public_key() == key.public_key()
    assert is_issued_by(found.old_with_new, found.new_root)
    assert found.old_with_new.public_key() == old_root.public_key()
    assert found.new_root.subject == old_root.subject
    named = [distribution_points(each) for each in (found.new_root, found.new_with_old, found.old_with_new)]
    assert named == [(), (URLS.crl,), ("http://ca.example.org/crl/2.crl",)], "a CRL is its issuer's"
    for certificate in (found.new_root, found.new_with_old, found.old_with_new, under_new):
        assert findings(certificate) <= KNOWN

    def verify(leaf: x509.Certificate, anchor: x509.Certificate, *between: x509.Certificate) -> None:
        for name, certificates in (("leaf", [leaf]), ("anchor", [anchor]), ("between", between)):
            (tmp_path / name).write_bytes(pem_of(*certificates))
        openssl("verify", "-x509_strict", "-attime", str(int(NOON.timestamp())), "-CAfile", tmp_path / "anchor",
                "-untrusted", tmp_path / "between", tmp_path / "leaf")  # fmt: skip

    leaf_new = leaf_of(CertificateAuthority(under_new, issuing_key))
    verify(leaf_new, old_root, under_new, found.new_with_old)
    verify(leaf_new, found.new_root, under_new)
    verify(leaf_of(authority.issuing_ca), found.new_root, authority.issuing_ca.certificate, found.old_with_new)
    with pytest.raises(AssertionError, match="unable to get"):
        verify(leaf_new, old_root, under_new)  # Without the certificate between them there is no way.


def test_names_of_issuing_cas_differ() -> None:
    names = [issuing_ca_name("fleet.internal", number) for number in (2, 3)]
    assert names[0] != names[1]
    assert names[0].get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "Fleetgate issuing CA 2"
