"""An issuing CA is revoked with what it has issued: that one, once; who follows the feed hears the last of it."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import update
from sqlalchemy.engine import Connection

from provisioning.enrolment.attempt import TokenCredential
from provisioning.errors import ConfigurationError
from provisioning.pki.revocation import certificate_key
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.role import Role
from provisioning.revocation.grounds import Grounds
from provisioning.revocation.listed_end import revoke_portion
from provisioning.revocation.of_authority import device_name, revoke_authority
from provisioning.revocation.recording import Changed
from provisioning.store import audit, certificates, revocations, tables, unfinished_key_ends
from provisioning.store.audit import Action
from provisioning.store.certificates import StoredCertificate
from provisioning.store.certificates_of_key import key_of
from provisioning.store.unfinished_authority_ends import EndedIssuer
from tests.support.fleet import Fleet
from tests.support.requests import NOON, csr_der


async def revoke(fleet: Fleet, name: str) -> None:
    def transaction(connection: Connection) -> None:
        revoke_authority(connection, name, Grounds(RevocationReason.CA_COMPROMISE), by="boss", now=fleet.clock())

    await fleet.database.write(transaction)


async def test_the_issuing_ca_that_is_named_is_revoked_once(fleet: Fleet) -> None:
    backend = TokenCredential("backend", await fleet.token("backend", None, Role.SERVICE))
    await fleet.enrolment.enrol(csr_der(names=["backend"]), backend)
    await fleet.enrol("meter-1")
    for name in ("nobody", "root-ca"):
        with pytest.raises(ConfigurationError, match=f"there is no issuing CA '{name}'"):
            await revoke(fleet, name)
    await revoke(fleet, "issuing-ca")
    with pytest.raises(ConfigurationError, match="issuing-ca is revoked already"):
        await revoke(fleet, "issuing-ca")
    await fleet.revocation.portions.finish_left()
    events = await fleet.database.read(lambda connection: revocations.after(connection, 0, 9))
    assert [(each.device, str(each.reason)) for each in events] == [
        (device_name("issuing-ca"), "cACompromise"),
        ("meter-1", "unspecified"),
        ("backend", "unspecified"),
    ]
    entries = await fleet.database.read(lambda connection: audit.entries(connection, 0, 99))
    told = [
        (each.actor, each.subject, json.loads(each.details)) for each in entries if each.action == Action.CA_CHANGED
    ]
    facts = {"reason": "cACompromise", "certificates": "in the entries that follow", "state": "revoked"}
    assert told[-1] == ("boss", "issuing-ca", facts)
    (last,) = [each for each in entries if each.action == Action.REVOKED]
    whose = {"reason": "unspecified", "serials": [each.serial for each in events[1:]]}
    assert (last.actor, last.subject, json.loads(last.details)) == ("boss", "issuing-ca", whose)


@pytest.mark.parametrize("of", ["CA", "key"])
async def test_what_was_listed_before_a_fail_over_is_looked_at_again_with_its_portion(fleet: Fleet, of: str) -> None:
    """The store has lost certificates that were just issued, and their numbers belong to others now."""
    theirs, other = await fleet.enrol("meter-1"), await fleet.enrol("meter-2")

    def stored(connection: Connection) -> list[StoredCertificate]:
        found = [certificates.find(connection, *certificate_key(each)) for each in (theirs, other)]
        return [each for each in found if each is not None]

    ended, foreign = await fleet.database.read(stored)
    whose = EndedIssuer(ended.issuer_key_id) if of == "CA" else key_of(ended)

    def portion(connection: Connection) -> Changed:
        if isinstance(whose, EndedIssuer):
            connection.execute(
                update(tables.certificates)
                .where(tables.certificates.c.id == foreign.id)
                .values(issuer_key_id="ab" * 20)
            )
            revoke_authority(connection, "issuing-ca", Grounds(RevocationReason.CA_COMPROMISE), by="b", now=NOON)
        else:
            unfinished_key_ends.begin(connection, [whose], invalidity_date=None, ended_at=NOON, ended_by="b")
        return revoke_portion(connection, whose, [10_000, foreign.id, ended.id], NOON, last=True)[0]

    assert [each.id for each in await fleet.database.write(portion)] == [ended.id]
