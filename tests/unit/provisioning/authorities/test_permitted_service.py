"""A CA that may not certify the service itself, or the brokers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import update
from sqlalchemy.engine import Connection

from provisioning.authorities.next_authority import NextAuthority
from provisioning.ca.ceremony import CertificateAuthority, read_issuing_ca_csr, sign_issuing_ca
from provisioning.directory.files import AuthorityFiles
from provisioning.errors import ConfigurationError
from provisioning.pki.keys import generate_key
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.role import Role
from provisioning.signers.places import SignerPlaces
from provisioning.store import certificates, devices, revocations, tables
from provisioning.store.certificates import IssuedCertificate
from tests.support.ceremonies import Ceremonies

LOCALHOST = x509.DNSName("localhost")


def confined(certificate: x509.Certificate, authority: CertificateAuthority, to: x509.GeneralName) -> x509.Certificate:
    """Return *certificate* as *authority* signs it with name constraints."""
    builder = x509.CertificateBuilder(
        certificate.issuer,
        certificate.subject,
        certificate.public_key(),
        certificate.serial_number,
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
        [*certificate.extensions],
    )
    return builder.add_extension(x509.NameConstraints([to], None), critical=True).sign(authority.key, hashes.SHA256())


def pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)


@dataclass
class Signed:
    """The next CA's certificate, by the root."""

    cas: Ceremonies
    certificate: x509.Certificate
    root: CertificateAuthority

    def confined(self, to: x509.GeneralName) -> bytes:
        return pem(confined(self.certificate, self.root, to))

    async def enrol_broker(self, name: str, hosts: Sequence[str], serial: int) -> int:
        """Record a broker's certificate with such *hosts*; return its id."""
        cas, now = self.cas, self.cas.clock()
        key = generate_key()
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        ends = now + timedelta(days=30)
        builder = x509.CertificateBuilder(subject, subject, key.public_key(), serial, now, ends)
        names = x509.SubjectAlternativeName([*map(x509.DNSName, hosts)])
        der = builder.add_extension(names, critical=False).sign(key, hashes.SHA256()).public_bytes(Encoding.DER)
        (ca,) = [each for each in await cas.life.every() if each.name == "issuing-ca"]

        def enrolled(connection: Connection) -> int:
            broker = devices.find(connection, name) or devices.add(connection, name, Role.BROKER, None, now)
            issued = IssuedCertificate(der, ca.key_id, serial, now, ends, b"")
            return certificates.add(connection, issued, broker.id, now)

        return await cas.database.write(enrolled)


@pytest.fixture
async def signed(fleet_cas: Ceremonies) -> Signed:
    life, directory = fleet_cas.life, fleet_cas.settings.directory
    request = read_issuing_ca_csr(await NextAuthority(life).export_csr())
    root = CertificateAuthority(
        x509.load_pem_x509_certificate((directory / "root-ca.crt").read_bytes()),
        SignerPlaces(AuthorityFiles(directory), fleet_cas.settings).open("root-ca"),
    )
    return Signed(fleet_cas, sign_issuing_ca(root, request, 7 << 100, fleet_cas.clock()), root)


@pytest.mark.parametrize(
    ("permitted", "of_ours", "words"),
    [
        (
            x509.DNSName("devices.example"),
            LOCALHOST,
            "its name constraints do not permit localhost, which the service's own",
        ),
        (
            x509.UniformResourceIdentifier("x.example"),
            x509.UniformResourceIdentifier("fleet.internal"),
            "do not permit spiffe://fleet.internal/service/provisioning",
        ),
    ],
)
async def test_no_ca_is_announced_under_which_no_client_would_accept_the_service(
    signed: Signed, permitted: x509.GeneralName, of_ours: x509.GeneralName, words: str
) -> None:
    """After its activation nobody reached the service: devices, brokers and operators alike."""
    announcing = NextAuthority(signed.cas.life)
    with pytest.raises(ConfigurationError, match=words):
        await announcing.announce(signed.confined(permitted))
    assert await announcing.announce(signed.confined(of_ours)) == "issuing-2"


async def test_no_ca_is_activated_that_may_not_certify_the_service_as_it_is_called_by_then(signed: Signed) -> None:
    life = signed.cas.life
    await NextAuthority(life).announce(signed.confined(LOCALHOST))
    renamed = replace(life, settings=life.settings.model_copy(update={"server_names": ("fleet.example.org",)}))
    with pytest.raises(ConfigurationError, match=r"its name constraints do not permit fleet\.example\.org, which the"):
        await renamed.activate(waiting=False, despite_brokers=True, despite_services=True)
    assert (await life.activate(waiting=False)).name == "issuing-2"


async def test_no_ca_is_activated_that_may_not_certify_a_broker(signed: Signed) -> None:
    life = signed.cas.life
    await NextAuthority(life).announce(signed.confined(LOCALHOST))
    await signed.enrol_broker("broker-1", ["localhost", "old.example.org"], 8)
    await signed.enrol_broker("broker-1", ["localhost", "mqtt.localhost"], 9)
    await signed.enrol_broker("broker-2", ["mqtt.example.org"], 10)
    words = "its name constraints do not permit mqtt.example.org of broker-2: no client would accept the certificates"
    with pytest.raises(ConfigurationError, match=f"^{re.escape(words)}.*--despite-brokers$"):
        await life.activate(waiting=False)
    assert (await life.activate(waiting=False, despite_brokers=True)).name == "issuing-2"


async def test_no_ca_is_announced_that_may_not_certify_a_broker_which_is_in_use(signed: Signed) -> None:
    life, now = signed.cas.life, signed.cas.clock()
    used = await signed.enrol_broker("broker-2", ["mqtt.example.org"], 8)
    with pytest.raises(ConfigurationError, match=r"do not permit mqtt\.example\.org of broker-2: .* or decommission"):
        await NextAuthority(life).announce(signed.confined(LOCALHOST))

    def revoke(connection: Connection) -> None:
        revocations.add(connection, [used], reason=RevocationReason.SUPERSEDED, revoked_at=now, revoked_by="admin")

    await signed.cas.database.write(revoke)
    assert await NextAuthority(life).announce(signed.confined(LOCALHOST)) == "issuing-2"


async def test_no_key_is_made_for_a_ca_whose_root_may_not_certify_the_service(fleet_cas: Ceremonies) -> None:
    """The root of another line, say, which is confined to what its devices are called."""
    life, directory = fleet_cas.life, fleet_cas.settings.directory
    key = SignerPlaces(AuthorityFiles(directory), fleet_cas.settings).open("root-ca")
    own = x509.load_pem_x509_certificate((directory / "root-ca.crt").read_bytes())
    confined_root = confined(own, CertificateAuthority(own, key), x509.DNSName("pumps.example"))
    await fleet_cas.database.write(lambda connection: _replace_root(connection, confined_root))
    with pytest.raises(ConfigurationError, match=r"^its root's name constraints do not permit localhost, which"):
        await NextAuthority(life).begin()
    assert not (directory / "issuing-2.key").exists()
    assert await NextAuthority(life).begin("pumps") == "issuing-pumps-1", "no server comes under that line"


def _replace_root(connection: Connection, root: x509.Certificate) -> None:
    """Have the root's certificate as one that says more, of the same key."""
    connection.execute(
        update(tables.authorities)
        .where(tables.authorities.c.name == "root-ca")
        .values(der=root.public_bytes(Encoding.DER))
    )
