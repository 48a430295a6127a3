"""The first operator when the CA that has certified it is revoked: who is certified again, also when asked again."""

from __future__ import annotations

from datetime import timedelta

import pytest
from cryptography import x509
from sqlalchemy.engine import Connection

from provisioning.authorities.authority_revocation import AuthorityRevocation
from provisioning.directory.files import AuthorityFiles, read_certificate
from provisioning.enrolment.operator_roles import change_operator_role
from provisioning.errors import ConfigurationError
from provisioning.operator_role import OperatorRole
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.role import Role
from provisioning.pki.serial_number import serial_text
from provisioning.revocation.service import RevocationService
from provisioning.revocation.suspension import SuspensionService
from provisioning.store import certificates, device_inventory, devices, operators
from provisioning.store.certificates import IssuedCertificate
from tests.support.ceremonies import Ceremonies


async def another_admin(fleet_cas: Ceremonies) -> None:
    """Make boss, whom the newest CA has certified, an admin, and the first operator an auditor."""
    now = fleet_cas.clock()
    newest = (await fleet_cas.life.every())[-1]

    def another(connection: Connection) -> None:
        boss = devices.add(connection, "boss", Role.OPERATOR, None, now)
        held = IssuedCertificate(b"", newest.key_id, 7, now, now + timedelta(days=30), b"")
        certificates.add(connection, held, boss.id, now)
        change_operator_role(connection, "boss", OperatorRole.ADMIN, by="admin", now=now)
        change_operator_role(connection, "admin", OperatorRole.AUDITOR, by="boss", now=now)

    await fleet_cas.database.write(another)


async def test_what_was_killed_before_the_operator_was_certified_again_does_that_when_asked_again(
    fleet_cas: Ceremonies,
) -> None:
    revocation = AuthorityRevocation(fleet_cas.life)
    await fleet_cas.successor()
    assert (await revocation.begin("issuing-ca", RevocationReason.CA_COMPROMISE)).operator is not None
    again = await revocation.begin("issuing-ca", RevocationReason.CA_COMPROMISE)
    assert (again.again, await revocation.renew_operator(again)) == (True, True)
    operator = AuthorityFiles(fleet_cas.settings.directory).certificate("operator")
    renewed = operator.read_bytes()
    assert "issuing CA 2" in x509.load_pem_x509_certificate(renewed).issuer.rfc4514_string()
    again = await revocation.begin("issuing-ca", RevocationReason.CA_COMPROMISE)
    assert not await revocation.renew_operator(again), "the new one is good"
    assert operator.read_bytes() == renewed
    await revocation.finish(again)
    with pytest.raises(ConfigurationError) as done:
        await revocation.to_revoke("issuing-ca")
    assert str(done.value) == (
        "issuing-ca is revoked already, with all that it has issued; admin can get in; if the files of that are lost: "
        "ca restore-operator"
    )


async def test_an_operator_cut_off_is_certified_when_asked_again_though_the_service_has_done_the_rest(
    fleet_cas: Ceremonies,
) -> None:
    """The command's connection to the store was lost when it had revoked the CA; the service's was not."""
    revocation = AuthorityRevocation(fleet_cas.life)
    await fleet_cas.successor()
    await revocation.finish(await revocation.begin("issuing-ca", RevocationReason.CA_COMPROMISE))
    assert (await revocation.to_revoke("issuing-ca")).name == "issuing-ca"
    again = await revocation.begin("issuing-ca", RevocationReason.CA_COMPROMISE)
    assert (again.again, again.rest) == (True, False)
    assert await revocation.renew_operator(again)
    assert {each.device.name for each in await revocation.finish(again)} == {"admin", "provisioning"}
    for ask in (revocation.to_revoke("issuing-ca"), revocation.begin("issuing-ca", RevocationReason.CA_COMPROMISE)):
        with pytest.raises(ConfigurationError, match="with all that it has issued; admin can get in"):
            await ask


async def test_nothing_is_left_for_an_operator_who_stays_suspended(fleet_cas: Ceremonies) -> None:
    """Another admin has access: asked again, it said for ever that a new certificate follows, and none did."""
    revocation = AuthorityRevocation(fleet_cas.life)
    await fleet_cas.successor()
    await another_admin(fleet_cas)
    await SuspensionService(fleet_cas.database, fleet_cas.clock, ()).suspend_device("admin", by="boss")
    begun = await revocation.begin("issuing-ca", RevocationReason.CA_COMPROMISE)
    assert not await revocation.renew_operator(begun)
    again = await revocation.begin("issuing-ca", RevocationReason.CA_COMPROMISE)
    assert (again.again, again.rest, await revocation.renew_operator(again)) == (True, True, False)
    await revocation.finish(again)
    with pytest.raises(ConfigurationError, match="with all that it has issued; boss can get in"):
        await revocation.to_revoke("issuing-ca")


async def test_an_operator_who_has_another_certificate_is_not_certified_when_asked_again(
    fleet_cas: Ceremonies,
) -> None:
    revocation = AuthorityRevocation(fleet_cas.life)
    await fleet_cas.successor()
    now, (*_, old, newest) = fleet_cas.clock(), await fleet_cas.life.every()

    def two_more(connection: Connection) -> None:
        admin = devices.find(connection, "admin")
        assert admin is not None
        for serial, authority in ((7, newest), (8, old)):  # The last is one that the CA cuts off.
            held = IssuedCertificate(b"", authority.key_id, serial, now, now + timedelta(days=30), b"%d" % serial)
            certificates.add(connection, held, admin.id, now)

    await fleet_cas.database.write(two_more)
    await revocation.finish(await revocation.begin(old.name, RevocationReason.CA_COMPROMISE))
    with pytest.raises(ConfigurationError, match="with all that it has issued; admin can get in"):
        await revocation.to_revoke(old.name)


@pytest.mark.parametrize("why", ["revoked before", "expired before"])
async def test_a_call_that_goes_on_certifies_no_operator_whom_the_ca_has_not_cut_off(
    fleet_cas: Ceremonies, why: str
) -> None:
    """As the first call does not: whose certificate was revoked by itself is not to get in with another one."""
    revocation = AuthorityRevocation(fleet_cas.life)
    await fleet_cas.successor()
    await another_admin(fleet_cas)
    operator = read_certificate(AuthorityFiles(fleet_cas.settings.directory).certificate("operator"))
    if why == "revoked before":
        service = RevocationService(fleet_cas.database, fleet_cas.clock, ())
        serial = serial_text(operator.serial_number)
        await service.revoke_serial(serial, RevocationReason.SUPERSEDED, by="boss")
    else:
        fleet_cas.clock.advance(operator.not_valid_after_utc - fleet_cas.clock() + timedelta(seconds=1))
    assert (await revocation.begin("issuing-ca", RevocationReason.CA_COMPROMISE)).operator is None
    again = await revocation.begin("issuing-ca", RevocationReason.CA_COMPROMISE)
    assert (again.again, again.operator) == (True, None)


async def test_a_finished_revocation_that_has_left_no_admin_says_how_one_gets_in(fleet_cas: Ceremonies) -> None:
    revocation = AuthorityRevocation(fleet_cas.life)
    await fleet_cas.successor()
    operator = read_certificate(AuthorityFiles(fleet_cas.settings.directory).certificate("operator"))
    fleet_cas.clock.advance(operator.not_valid_after_utc - fleet_cas.clock() + timedelta(seconds=1))
    await revocation.finish(await revocation.begin("issuing-ca", RevocationReason.CA_COMPROMISE))
    with pytest.raises(ConfigurationError, match=r"^issuing-ca is revoked already, .*; no admin has access: ca re"):
        await revocation.to_revoke("issuing-ca")


@pytest.mark.parametrize("suspended", [False, True])
async def test_the_first_operator_gets_back_what_he_had_while_another_admin_can_get_in(
    fleet_cas: Ceremonies, suspended: bool
) -> None:
    await fleet_cas.successor()
    await another_admin(fleet_cas)
    if suspended:
        await SuspensionService(fleet_cas.database, fleet_cas.clock, ()).suspend_device("admin", by="boss")
    revocation = AuthorityRevocation(fleet_cas.life)
    begun = await revocation.begin("issuing-ca", RevocationReason.CA_COMPROMISE)
    assert await revocation.renew_operator(begun) is not suspended
    assert await fleet_cas.database.read(lambda connection: operators.role_of(connection, "admin")) == "auditor"
    stored = await fleet_cas.database.read(
        lambda connection: device_inventory.find(connection, "admin", fleet_cas.clock())
    )
    assert stored is not None
    assert stored.issued == (1 if suspended else 2)
