"""A CA from elsewhere that may not certify the service itself."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from provisioning.authorities.next_authority import NextAuthority
from provisioning.ca.ceremony import CertificateAuthority, read_issuing_ca_csr, sign_issuing_ca
from provisioning.directory.files import AuthorityFiles
from provisioning.errors import ConfigurationError
from provisioning.signers.places import SignerPlaces
from tests.support.ceremonies import Ceremonies


@pytest.mark.parametrize(
    ("permitted", "of_ours", "words"),
    [
        (
            x509.DNSName("devices.example"),
            x509.DNSName("localhost"),
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
    fleet_cas: Ceremonies, permitted: x509.GeneralName, of_ours: x509.GeneralName, words: str
) -> None:
    """After its activation nobody reached the service: devices, brokers and operators alike."""
    life, directory = fleet_cas.life, fleet_cas.settings.directory
    request = read_issuing_ca_csr(await NextAuthority(life).export_csr())
    root = x509.load_pem_x509_certificate((directory / "root-ca.crt").read_bytes())
    key = SignerPlaces(AuthorityFiles(directory), fleet_cas.settings).open("root-ca")
    signed = sign_issuing_ca(CertificateAuthority(root, key), request, 7 << 100, fleet_cas.clock())

    def confined(to: x509.GeneralName) -> bytes:
        dates = signed.not_valid_before_utc, signed.not_valid_after_utc
        builder = x509.CertificateBuilder(
            signed.issuer, signed.subject, signed.public_key(), signed.serial_number, *dates, [*signed.extensions]
        )
        made = builder.add_extension(x509.NameConstraints([to], None), critical=True).sign(key, hashes.SHA256())
        return made.public_bytes(Encoding.PEM)

    with pytest.raises(ConfigurationError, match=words):
        await NextAuthority(life).announce(confined(permitted))
    assert await NextAuthority(life).announce(confined(of_ours)) == "issuing-2"
