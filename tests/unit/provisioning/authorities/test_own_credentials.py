from __future__ import annotations

import ipaddress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from sqlalchemy.engine import Connection

from provisioning.authorities.own_credentials import OwnCredentials
from provisioning.ca.issuer import IssuanceRefused
from provisioning.ca.profile import Profile, ProfileConfig, ProfileName, profile_of
from provisioning.directory.files import AuthorityFiles, read_certificate
from provisioning.pki.identity import identity_of
from provisioning.pki.keys import generate_key, key_to_pem, load_key, write_private
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.role import Role
from provisioning.store import certificates, host_names
from tests.support.fleet import Fleet

LIFE = timedelta(days=90)


@pytest.fixture
async def credentials(fleet: Fleet, tmp_path: Path) -> OwnCredentials:
    profiles: dict[str, Profile] = {name: profile_of(ProfileConfig(name, LIFE)) for name in ProfileName}
    own = OwnCredentials(
        AuthorityFiles(tmp_path),
        fleet.issuer,
        fleet.database,
        fleet.serial_numbers,
        profiles,
        "fleet.internal",
        fleet.clock,
    )
    await own.issue_first(["localhost", "127.0.0.1"])
    return own


async def test_the_server_renews_its_certificate_when_a_third_of_its_life_is_left(
    fleet: Fleet, credentials: OwnCredentials
) -> None:
    path = credentials.files.certificate("server")
    first = read_certificate(path)
    assert not await credentials.renew_server()
    fleet.clock.advance(LIFE * 2 / 3)
    assert await credentials.renew_server()
    second = read_certificate(path)
    names = [each.extensions.get_extension_for_class(x509.SubjectAlternativeName).value for each in (first, second)]
    assert names[0] == names[1]
    assert first.public_key() != second.public_key()
    assert load_key(credentials.files.key("server")).public_key() == second.public_key()
    assert credentials.files.key("server").stat().st_mode & 0o777 == 0o600
    assert await fleet.database.read(
        lambda connection: certificates.find_serial(connection, f"{second.serial_number:x}")
    )
    assert not await credentials.renew_server()


@pytest.mark.parametrize("held", [False, True], ids=["revoked", "on hold"])
async def test_one_that_is_revoked_is_renewed_at_once(fleet: Fleet, credentials: OwnCredentials, held: bool) -> None:
    """Brokers do not believe who shows it; the service itself is not ended by it."""
    path = credentials.files.certificate("server")
    first = read_certificate(path)
    serial = f"{first.serial_number:x}"
    if held:
        await fleet.suspension.suspend_serial(serial, by="admin")
    else:
        await fleet.revocation.revoke_serial(serial, RevocationReason.KEY_COMPROMISE, by="admin")
    assert await credentials.renew_server()
    assert read_certificate(path).public_key() != first.public_key()
    assert not await credentials.renew_server()


async def test_a_certificate_from_the_future_is_replaced_when_the_clock_is_set_back(
    fleet: Fleet, credentials: OwnCredentials
) -> None:
    now = fleet.clock()
    fleet.clock.advance(LIFE)
    assert await credentials.renew_server()
    fleet.clock.now = now
    assert await credentials.renew_server()
    assert read_certificate(credentials.files.certificate("server")).not_valid_before_utc < now


async def test_what_ends_with_its_ca_is_not_renewed_and_nothing_is_issued_that_has_ended(
    fleet: Fleet, credentials: OwnCredentials
) -> None:
    """A third of what is left came ever sooner, and afterwards a certificate that had ended was made every second."""
    end = credentials.issuer.certificate.not_valid_after_utc
    fleet.clock.now = end - timedelta(days=3)
    assert await credentials.renew_server()
    last = read_certificate(credentials.files.certificate("server"))
    assert last.not_valid_after_utc == end
    for left in (timedelta(days=1), timedelta(seconds=1), timedelta(0), -timedelta(days=1)):
        fleet.clock.now = end - left
        assert not await credentials.renew_server()
    fleet.clock.now = end
    moved = replace(credentials, server_names=("elsewhere.example.org",))
    with pytest.raises(IssuanceRefused, match="the issuing CA expired on"):
        await moved.renew_server()


async def test_other_names_count_at_once_and_are_kept(fleet: Fleet, credentials: OwnCredentials) -> None:
    moved = replace(credentials, server_names=("CA.example.org", "192.0.2.7", "localhost"))
    assert await moved.renew_server()
    names = read_certificate(credentials.files.certificate("server")).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert names.value.get_values_for_type(x509.DNSName) == ["ca.example.org", "localhost"]
    assert names.value.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address("192.0.2.7")]
    assert not await moved.renew_server()
    assert not await replace(moved, server_names=("localhost", "192.0.2.7", "ca.example.org")).renew_server()
    fleet.clock.advance(LIFE * 2 / 3)
    assert await credentials.renew_server(), "nobody names any now"
    assert (
        read_certificate(credentials.files.certificate("server"))
        .extensions.get_extension_for_class(x509.SubjectAlternativeName)
        .value
        == names.value
    )


async def test_a_key_that_does_not_fit_is_mended(credentials: OwnCredentials) -> None:
    key = credentials.files.key("server")
    key.unlink()
    assert await credentials.renew_server()
    key.unlink()
    write_private(key, key_to_pem(generate_key()))
    assert await credentials.renew_server()
    certificate = read_certificate(credentials.files.certificate("server"))
    assert load_key(key).public_key() == certificate.public_key()


async def test_the_server_is_a_service_that_only_serves_and_the_operator_is_an_operator(
    credentials: OwnCredentials,
) -> None:
    server, operator = (read_certificate(credentials.files.certificate(name)) for name in ("server", "operator"))
    assert (identity_of(server).role, identity_of(operator).role) == (Role.SERVICE, Role.OPERATOR)
    usage = server.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]


async def test_the_service_s_host_name_is_no_device_s(fleet: Fleet, credentials: OwnCredentials) -> None:
    def holder(connection: Connection) -> str | None:
        found = host_names.holder(connection, "localhost")
        return None if found is None else found.name

    assert await fleet.database.read(holder) == "provisioning"
    fleet.clock.advance(LIFE * 2 / 3)
    assert await credentials.renew_server()
    assert await fleet.database.read(holder) == "provisioning"
