"""The linter finds each thing that a faulty builder would do, in a device's certificate and in an OCSP signer's."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID, NameOID

from provisioning.ca.ceremony import Authority, found_authority
from provisioning.ca.issuer import Issuer
from provisioning.ca.lint import Intent, lint, lint_ocsp_signer
from provisioning.ca.name_policy import SubjectNames
from provisioning.ca.profile import ProfileConfig, ProfileName, profile_of
from provisioning.ca.signing import hash_for
from provisioning.pki.identity import Identity
from provisioning.pki.keys import generate_key, key_identifier
from provisioning.pki.role import Role
from tests.support.requests import NOON

SERIAL = 1 << 126 | 5
DAY = timedelta(days=1)
DEVICE = profile_of(ProfileConfig(ProfileName.DEVICE, 30 * DAY))
OFF_LINE = profile_of(ProfileConfig(ProfileName.DEVICE, 30 * DAY, crl_url=False, ocsp_url=False, issuer_url=False))
METER = Identity("fleet.internal", Role.DEVICE, "meter-17", "north")
USAGES = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign", "encipher_only",
          "decipher_only")  # fmt: skip
PLACE = x509.UniformResourceIdentifier("http://ca.example.org/ca.crl")


@pytest.fixture(scope="module")
def authority() -> Authority:
    return found_authority("fleet.internal", NOON, (SERIAL + 1, SERIAL + 2))


@pytest.fixture(scope="module")
def issuer(authority: Authority) -> Issuer:
    return Issuer(authority.issuing_ca.certificate, authority.issuing_ca.key)


def built(issuer: Issuer, change: str, subject: x509.Name, purpose: x509.ObjectIdentifier) -> x509.CertificateBuilder:
    """Return what devices' and OCSP signers' certificates have in common, with one *change*."""
    key = generate_key().public_key()
    end = issuer.certificate.not_valid_after_utc
    begins, ends = {
        "life": (NOON - DAY, NOON + 31 * DAY),
        "no life": (NOON, NOON),
        "end": (end - DAY, end + DAY),
    }.get(change, (NOON, NOON + 30 * DAY))
    certifies = x509.KeyUsage(
        digital_signature=True, key_cert_sign=change == "key usage", **dict.fromkeys(USAGES, False)
    )
    builder = (
        x509.CertificateBuilder()
        .issuer_name(x509.Name([]) if change == "issuer" else issuer.certificate.subject)
        .subject_name(subject)
        .public_key(key)
        .serial_number(7 if change == "serial" else SERIAL)
        .not_valid_before(begins)
        .not_valid_after(ends)
        .add_extension(x509.BasicConstraints(ca=change == "ca", path_length=None), critical=change != "criticality")
        .add_extension(certifies, critical=True)
        .add_extension(x509.SubjectKeyIdentifier(b"x" if change == "ski" else key_identifier(key)), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier(b"x" if change == "aki" else issuer.key_id, None, None), critical=False
        )
    )
    if change != "no usage":
        usages = [ExtendedKeyUsageOID.SERVER_AUTH] if change == "purpose" else [purpose]
        more = [ExtendedKeyUsageOID.SERVER_AUTH] if change == "purposes" else []
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages + more), critical=False)
    return builder


def signed(builder: x509.CertificateBuilder, authority: Authority) -> x509.Certificate:
    key = authority.issuing_ca.key
    return builder.sign(key, hash_for(key))


def common_name(text: str) -> x509.NameAttribute[str]:
    return x509.NameAttribute(NameOID.COMMON_NAME, text)


def access_to(method: x509.ObjectIdentifier) -> x509.AuthorityInformationAccess:
    return x509.AuthorityInformationAccess([x509.AccessDescription(method, PLACE)])


def device(issuer: Issuer, authority: Authority, change: str) -> x509.Certificate:
    """Return a device's certificate with one *change*."""
    organization = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Example")
    subjects: dict[str, Sequence[x509.NameAttribute[str]]] = {
        "subject": [common_name("x")],
        "attribute": [organization, common_name("meter-17")],
    }
    subject = x509.Name(subjects.get(change, [common_name("meter-17")]))
    builder = built(issuer, change, subject, ExtendedKeyUsageOID.CLIENT_AUTH)
    uri = METER.uri.replace("north", "south") if change == "south" else METER.uri
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri)]
    more: dict[str, x509.GeneralName] = {
        "host": x509.DNSName("meter-17.example.org"),
        "address": x509.IPAddress(ipaddress.ip_address("::1")),
        "mailbox": x509.RFC822Name("meter-17@example.org"),
    }
    names += [more[change]] if change in more else []
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    added: dict[str, x509.ExtensionType] = {
        "extra": x509.OCSPNoCheck(),
        "crl": x509.CRLDistributionPoints([x509.DistributionPoint([PLACE], None, None, None)]),
        "OCSP": access_to(AuthorityInformationAccessOID.OCSP),
        "issuers": access_to(AuthorityInformationAccessOID.CA_ISSUERS),
        "repository": access_to(x509.ObjectIdentifier("1.3.6.1.5.5.7.48.5")),  # No profile has one.
    }
    if change in added:
        builder = builder.add_extension(added[change], critical=False)
    return signed(builder, authority)


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        ("issuer", "the issuer's name is not the issuing CA's subject"),
        ("serial", "serial number has 3 bits, not 64 to 159"),
        ("subject", "the Common Name ['x'] is not the name in spiffe://fleet.internal/device/north/meter-17"),
        ("attribute", "the subject is not the intended attributes and then one Common Name"),
        ("south", f"the certificate names {METER.uri.replace('north', 'south')}, not {METER.uri}"),
        ("life", "the certificate lives longer than the device profile allows"),
        ("no life", "notBefore is not before notAfter"),
        ("end", "notAfter is later than the issuing CA's own"),
        ("ca", "an end entity would become a CA"),
        ("key usage", "key usage is not digitalSignature alone"),
        ("purpose", "extended key usage is not the device profile's"),
        ("purposes", "extended key usage is not the device profile's"),
        ("no usage", "extension 2.5.29.37 is missing"),
        ("extra", "extension 1.3.6.1.5.5.7.48.1.5 is in no profile"),
        ("criticality", "extension 2.5.29.19 has the wrong criticality"),
        ("ski", "the subject key identifier is not the key's"),
        ("aki", "the authority key identifier is not the issuing CA's"),
        ("host", "the Subject Alternative Name holds other names than intended"),
        ("address", "the Subject Alternative Name holds other names than intended"),
        ("mailbox", "the Subject Alternative Name holds other names than intended"),
        ("nothing", None),
    ],
)
def test_what_a_faulty_builder_would_do_to_a_device(
    authority: Authority, issuer: Issuer, change: str, finding: str | None
) -> None:
    intent = Intent(DEVICE, METER, issuer.certificate, SubjectNames())
    assert lint(device(issuer, authority, change), intent) == ([] if finding is None else [finding])


def test_a_certificate_of_another_role_than_its_profile(authority: Authority, issuer: Issuer) -> None:
    service = profile_of(ProfileConfig(ProfileName.SERVICE, 30 * DAY))
    intent = Intent(service, METER, issuer.certificate, SubjectNames())
    assert lint(device(issuer, authority, "nothing"), intent) == ["role device does not fit the service profile"]


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        ("crl", "the device profile has no CRL distribution point"),
        ("OCSP", "the device profile does not have access method 1.3.6.1.5.5.7.48.1"),
        ("issuers", "the device profile does not have access method 1.3.6.1.5.5.7.48.2"),
        ("repository", "the device profile does not have access method 1.3.6.1.5.5.7.48.5"),
    ],
)
def test_a_pointer_that_the_profile_does_not_have(
    authority: Authority, issuer: Issuer, change: str, finding: str
) -> None:
    certificate = device(issuer, authority, change)
    assert lint(certificate, Intent(OFF_LINE, METER, issuer.certificate, SubjectNames())) == [finding]
    other = lint(certificate, Intent(DEVICE, METER, issuer.certificate, SubjectNames()))
    assert other == ([finding] if change == "repository" else [])


def ocsp_signer(issuer: Issuer, authority: Authority, change: str) -> x509.Certificate:
    """Return an OCSP signer's certificate with one *change*."""
    subject = x509.Name([common_name("OCSP")])
    builder = built(issuer, change, subject, ExtendedKeyUsageOID.OCSP_SIGNING)
    if change != "check":
        builder = builder.add_extension(x509.OCSPNoCheck(), critical=False)
    added: dict[str, Any] = {"extra": x509.SubjectAlternativeName([x509.DNSName("ca.example.org")])}
    if change in added:
        builder = builder.add_extension(added[change], critical=False)
    return signed(builder, authority)


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        ("issuer", "the issuer's name is not the issuing CA's subject"),
        ("serial", "serial number has 3 bits, not 64 to 159"),
        ("life", "it cannot be revoked and lives longer than 31 days"),
        ("no life", "its validity is not within that of the issuing CA"),
        ("end", "its validity is not within that of the issuing CA"),
        ("ca", "an OCSP signer would become a CA"),
        ("key usage", "key usage is not digitalSignature alone"),
        ("purpose", "extended key usage is not OCSPSigning alone"),
        ("purposes", "extended key usage is not OCSPSigning alone"),
        ("no usage", "its extensions are not those of an OCSP signer"),
        ("check", "its extensions are not those of an OCSP signer"),
        ("extra", "its extensions are not those of an OCSP signer"),
        ("criticality", "its extensions are not those of an OCSP signer"),
        ("ski", "the subject key identifier is not the key's"),
        ("aki", "the authority key identifier is not the issuing CA's"),
        ("nothing", None),
    ],
)
def test_what_a_faulty_builder_would_do_to_an_ocsp_signer(
    authority: Authority, issuer: Issuer, change: str, finding: str | None
) -> None:
    found = lint_ocsp_signer(ocsp_signer(issuer, authority, change), issuer.certificate)
    assert found == ([] if finding is None else [finding])
