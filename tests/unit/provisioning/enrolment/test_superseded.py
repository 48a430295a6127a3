"""What a new certificate does to those before it, as the feed and the audit log tell it."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from provisioning.errors import Refused
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.revocation.grounds import Grounds
from provisioning.revocation.of_authority import revoke_authority
from provisioning.store import audit, certificates, revocations
from provisioning.store.audit import Action, AuditEntry
from provisioning.store.groups import Group, NewKey
from provisioning.store.revocations import RevocationRecord
from tests.support.fleet import Fleet
from tests.support.requests import NOON
from tests.support.ways import claim, enrol, group

MOMENT = NOON + timedelta(microseconds=123_456)


async def events(fleet: Fleet) -> list[RevocationRecord]:
    return await fleet.database.read(lambda connection: revocations.after(connection, 0, 9))


async def audited(fleet: Fleet) -> list[AuditEntry]:
    return await fleet.database.read(lambda connection: audit.entries(connection, 0, 99))


async def test_events_keep_the_moment_whatever_revokes(fleet: Fleet) -> None:
    fleet.clock.now = MOMENT  # A broker measures from it how long a session has outlived its certificate.
    await group(fleet, "claim", name="trials")
    await fleet.groups.create(Group("north", new_key=NewKey.REPLACE), by="admin")
    await enrol(fleet, "meter-1", certificate=await claim(fleet, group_name="trials"))
    facts = [json.loads(each.details) for each in await audited(fleet) if each.action == Action.SUSPENDED]
    (trial,) = await events(fleet)
    assert facts == [{"reason": "certificateHold", "serials": [trial.serial], "until": "its activation"}]
    await fleet.enrol()
    await fleet.enrol()
    grounds = Grounds(RevocationReason.CA_COMPROMISE)
    await fleet.database.write(
        lambda connection: revoke_authority(connection, "issuing-ca", grounds, by="admin", now=fleet.clock())
    )
    assert [(str(each.reason), each.occurred_at) for each in await events(fleet)][:3] == [
        ("certificateHold", MOMENT),
        ("superseded", MOMENT),
        ("cACompromise", MOMENT),
    ]


async def test_a_hold_ends_in_what_replaces_the_certificate_and_keeps_its_date(fleet: Fleet) -> None:
    await fleet.groups.create(Group("north", new_key=NewKey.REPLACE), by="admin")
    old = await fleet.enrol()
    serial = f"{old.serial_number:x}"
    await fleet.suspension.suspend_serial(serial, by="anna")
    fleet.clock.advance(timedelta(hours=1))
    await fleet.enrol()
    assert [(each.reason, each.occurred_at) for each in await events(fleet)] == [
        (RevocationReason.CERTIFICATE_HOLD, NOON),
        (RevocationReason.SUPERSEDED, NOON),
    ]
    found = await fleet.database.read(lambda connection: certificates.find_serial(connection, serial))
    revocation = found[0].revocation if found else None
    assert revocation is not None
    assert (revocation.reason, revocation.revoked_at) == (RevocationReason.SUPERSEDED, NOON)
    with pytest.raises(Refused, match="REVOCATION_FINAL"):
        await fleet.suspension.resume_serial(serial, by="anna")
    assert [
        (each.actor, json.loads(each.details)) for each in await audited(fleet) if each.action == Action.REVOKED
    ] == [("admin", {"reason": "superseded", "serials": [serial]})]
